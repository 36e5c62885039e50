"""A pipeline on a real SLURM to which nothing happens, seen from outside the whole time."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = pytest.mark.slurm
STAGES = ["prepare", "shards", "merge", "train", "evaluate", ""]


def counting(folder: Path, name: str) -> Path:
    """A folder for the PATH in which one of SLURM's commands writes a line for each of its calls."""
    real = shutil.which(name)
    script = folder / name
    script.write_text(f'#!/bin/sh\ndate +%s.%N >> {folder}/calls\nexec {real} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return folder


def test_a_pipeline_runs_to_the_end_and_every_command_tells_how_far_it_is(
    empty: Runs, tmp_path: Path
) -> None:
    runs = empty
    path = f"{counting(tmp_path, 'squeue')}:{os.environ['PATH']}"
    runs.environment["PATH"] = path
    waiting = runs.start(*runs.request(), "--wait")
    seen: list[tuple[str, str]] = []
    name, logs = "", None

    while waiting.poll() is None:
        for line in map(json.loads, runs.univip("status", "--json").splitlines()):
            if line["run"].startswith("univip-"):
                name = line["run"]
                logs = logs or runs.start("logs", name, "-f")
                seen += (
                    [(line["state"], line["stage"])] if seen[-1:] != [(line["state"], line["stage"])] else []
                )
        time.sleep(1)
    assert logs is not None
    said = logs.communicate(timeout=60)[0]
    out, err = waiting.communicate()

    assert waiting.returncode == 0, err
    assert out.strip() == name
    assert {state for state, _ in seen} <= {"queued", "running", "done", "stopped"}
    assert ("running", "shards") in seen
    assert ("running", "train") in seen
    stages = [STAGES.index(stage) for _, stage in seen]
    assert all(before <= after for before, after in pairwise(stages)), seen
    assert f"{name}/journal" in said
    assert " images/s  loss " in said
    assert re.search(r"  done  .* steps  loss ", said.splitlines()[-1]), said
    assert "Traceback" not in said
    # However many look how often: one call in 30 s, beside those of submitting.
    calls = [float(line) for line in (tmp_path / "calls").read_text(encoding="utf-8").split()]
    assert sum(after - before < 29 for before, after in pairwise(calls)) <= 3, calls


@pytest.mark.parametrize("export", ["ALL", "NONE"])
def test_a_pipeline_that_is_submitted_within_a_job_has_nothing_of_it(empty: Runs, export: str) -> None:
    """As from a shell that srun began; what that asked for would be refused by the srun of the new jobs.

    Other sites begin jobs with an empty environment, so that nothing at all is handed on.
    """
    empty.within = ["srun", "--ntasks=1", "--cpus-per-task=3", "--mem-per-cpu=100", "--cpu-bind=cores"]
    run = empty.submit("cluster.mem_gb=2", "train.max_steps=8", f"+cluster.extra.export={export}")
    empty.within = []

    run.until_done()


def test_a_local_run_within_an_allocation_of_several_nodes_works_on_one(runs: Runs) -> None:
    runs.within = ["salloc", "--quiet", "--nodes=2", "--ntasks=2"]
    run = runs.submit("cluster=local", "train.max_steps=8", "--wait")
    runs.within = []

    run.until_done()
    assert [attempt.cause for attempt in run.attempts()] == ["done"]
    assert {record["world_size"] for record in run.records("round")} == {2}


def test_the_same_request_again_starts_nothing(undisturbed: Run) -> None:
    runs = undisturbed.runs

    again = runs.univip(*runs.request(), "--json")

    assert '"jobs": []' in again
    assert [attempt.cause for attempt in undisturbed.attempts()] == ["done"]
    shown = runs.univip("show", undisturbed.name)
    assert "evaluate of" in shown
    assert "done" in shown
