"""The code of a run on a real SLURM: jobs that begin after the checkout was edited run what was submitted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.states import State, read_state

if TYPE_CHECKING:
    from conftest import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
UNIVIP = [sys.executable, "-c", "from launcher.cli.main import main; main()"]


def test_jobs_run_the_code_that_was_submitted(
    cluster: Cluster, photographs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("univip", "jobs", "launcher", "monitoring", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    small = ["debug=small", "data.workers=0", "proposals.processes=1"]
    later = ["cluster=slurm", "+cluster.extra.begin=now+10"]
    told = subprocess.run(
        [*UNIVIP, "submit", "proposals", *photographs, *small, *later, "--json"],
        env=cluster.environment | {"PYTHONPATH": str(checkout), "UNIVIP_RUNS": str(tmp_path / "runs")},
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    for path in checkout.rglob("*.py"):
        path.write_text("raise SystemExit('the code of a later day')\n")

    run_dir = Path(json.loads(told.stdout)["run_dir"])
    assert not (run_dir / "attempts").exists()  # no job has begun
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    deadline = time.monotonic() + 300
    while not (state := read_state(run_dir)).is_over():
        assert time.monotonic() < deadline, state
        time.sleep(1)
    assert state.state is State.done, state
