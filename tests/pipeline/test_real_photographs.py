"""The whole job, as a user starts it, on real photographs: boxes, training on two workers, evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
UNIVIP = [sys.executable, "-c", "from launcher.cli.main import main; main()"]
SETS = {
    "dev_coco": ["data.split=train2017"],
    "voc07_short160": [
        "data.split=train",
        "proposals.min_sizes=[21,32]",
        "views.min_overlap=21",
        "data.max_images=48",
        "train.max_steps=20",
    ],
}


def univip(runs: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*UNIVIP, *arguments],
        env=os.environ | {"UNIVIP_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def journal(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for path in run_dir.glob("journal/*.jsonl") for line in path.read_text().splitlines()]
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.mark.parametrize("name", SETS)
def test_the_pipeline_runs_to_the_end(real_data: Path, tmp_path: Path, name: str) -> None:
    request = [
        "submit",
        "pipeline",
        f"data.root={real_data / name}",
        "debug=small",
        "cluster.workers_per_node=2",
        "train.threads=1",
        *SETS[name],
    ]

    run = univip(tmp_path, *request, "--wait").splitlines()[-1]

    result = json.loads((tmp_path / run / "results" / "evaluate.json").read_text())
    assert set(result["trained"]) == set(result["untrained"]) >= {"effective_rank", "mean_average_precision"}
    steps = journal(tmp_path / run, "step")
    assert steps[-1]["data_step"] == steps[-1]["target"] == result["checkpoint_data_step"]
    assert {record["world_size"] for record in journal(tmp_path / run, "round")} == {2}
    counts = steps[-1]["counts"]
    assert counts["fallback"] <= 0.3 * counts["images"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert len(univip(tmp_path, "digest", run).strip()) == 64
    # The same request again is the same run, and it is done.
    assert univip(tmp_path, *request).splitlines()[-1] == run
    assert len(list((tmp_path / run / "attempts").iterdir())) == 2
