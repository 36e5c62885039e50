"""Many shells that ask for the same thing at once, and what supervise does after SLURM has given up."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
SHELLS, TIMES = 8, 5


def test_many_shells_that_submit_the_same_at_once_begin_one_run(empty: Runs) -> None:
    request = [*empty.request("+cluster.extra.begin=now+600"), "--json"]
    told: list[dict[str, object]] = []

    def shell() -> None:
        for _ in range(TIMES):
            told.append(json.loads(empty.univip(*request)))

    shells = [threading.Thread(target=shell) for _ in range(SHELLS)]
    for each in shells:
        each.start()
    for each in shells:
        each.join()

    assert len(told) == SHELLS * TIMES
    assert len({str(each["run"]) for each in told}) == 1
    assert len([each for each in told if each["jobs"]]) == 1
    waiting = empty.cluster.run("squeue", "--noheader", "--array-unique", "--format=%j %k").splitlines()
    names = {empty.boxes().name, str(told[0]["run"])}
    mine = [line.split()[0] for line in waiting if line.split()[1] in names]
    assert sorted(mine) == [
        f"univip-{stage}" for stage in ("evaluate", "merge", "prepare", "shards", "train")
    ]
    assert {path.name for path in empty.folder.iterdir() if not path.name.startswith(".")} == names
    empty.univip("cancel", str(told[0]["run"]))


def test_a_training_that_is_killed_beyond_requeue_is_brought_to_its_evaluation(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit()
    run.until_running(1)
    first = run.job_id("train")
    [agent] = run.processes("in-slurm", "train")
    task = int(Path(f"/proc/{agent}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])

    # The task with all that it started: nobody is left to save anything or to ask for a requeue.
    for pid in [task, *run.processes()]:
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.status()["state"] in ("failed", "stopped"), "the end of the job", 120)
    assert run.status()["stage"] == "train"
    assert "resubmitted in train" in runs.univip("supervise", "--once")
    assert runs.univip("supervise", "--once") == ""
    run.until_done()

    assert run.job_id("train") != first
    assert [attempt.cause for attempt in run.attempts()] == ["killed", "done"]
    assert run.digest() == undisturbed.digest()
    ledger = [json.loads(line) for line in (run.directory / "ledger.jsonl").read_text().splitlines()]
    assert [record["cause"] for record in ledger if record["kind"] == "supervise"] == ["killed"]
