"""A short drill, as a user types it: the real command, real runs, one fault or two of some kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
KINDS = {
    "control": "in process",
    "control:job": "processes",
    "nan:optimizer": "in process",
    "file:stale": "in process",
    "disk:full": "in process",
    "kill:rank": "processes",
}


def test_a_short_drill_holds_and_says_how_each_trial_ran(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.cli.main", "drill", "--faults", ",".join(KINDS)]
    environment = {**os.environ, "UNIVIP_RUNS": str(tmp_path)}

    done = subprocess.run(
        [*command, "--trials", "1", "--seed", "1", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["kind"]: row for row in found["rows"]}
    assert {name: row["how"] for name, row in rows.items()} == KINDS
    assert found["failing"] == []
    # Every optimizer fault was replayed to the bit; every kill led to the digest of the undisturbed job.
    assert rows["nan:optimizer"]["replayed"] == rows["nan:optimizer"]["trials"] > 0
    assert rows["kill:rank"]["digest_equal"] is True
    assert len((tmp_path / "drill" / "trials.jsonl").read_text().splitlines()) == len(KINDS)
