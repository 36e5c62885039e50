"""Every signal of SLURM ends in a durable checkpoint, a requeue and a resumption; whatever the job is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
PREEMPTIONS = 3  # of each training


def test_each_of_many_signals_is_answered_by_a_checkpoint(new_runs: Callable[[str], Runs]) -> None:
    endless = ["cluster.qos=low", "train.max_steps=100000", "checkpoint.every_steps=1000"]
    short = new_runs("short").submit(*endless, "cluster.time_h=0.1", "+cluster.extra.nodelist=node1")
    wide = new_runs("wide").submit(
        *endless, "cluster.nodes.min=2", "cluster.nodes.max=2", "+cluster.extra.exclude='node[1,4]'"
    )
    runs: list[Run] = [short, wide]
    cluster = short.runs.cluster
    jobs = [run.job_id("train") for run in runs]

    expected = []
    for number in range(1, PREEMPTIONS + 1):
        for run, job in zip(runs, jobs, strict=True):
            run.until_running(number)
            cluster.preempt(job)
        expected.append("preemption")
    for run, job in zip(runs, jobs, strict=True):
        run.until_running(PREEMPTIONS + 1)
        cluster.end_time(job)
    expected.append("time_limit")
    for run in runs:
        run.until_running(PREEMPTIONS + 2)
        run.runs.univip("cancel", run.name)
        run.until(lambda: run.status()["state"] == "cancelled", "the end")  # noqa: B023
        run.until(lambda: run.processes() == [], "the end of its processes", 30)  # noqa: B023

    for run, job in zip(runs, jobs, strict=True):
        assert [attempt.cause for attempt in run.attempts()] == [*expected, "cancelled"]
        assert {attempt.exit_code for attempt in run.attempts()} == {75}
        assert {attempt.slurm_job_id for attempt in run.attempts()} == {job}
        assert run.restarts() == expected
        # A checkpoint comes every thousand steps: each attempt went on from one that its signal caused.
        data_steps = [record["data_step"] for record in run.records("step")]
        assert data_steps == list(range(1, len(data_steps) + 1))


def test_elements_of_an_array_that_are_preempted_are_put_back_and_made(undisturbed: Run, empty: Runs) -> None:
    few = ["proposals.shard_images=12", "proposals.mode=quality", "cluster.qos=low"]
    [_, _, *words] = empty.request(*few)
    empty.univip("submit", "proposals", *words)
    boxes = empty.boxes()

    boxes.until(
        lambda: {record["shard"] for record in boxes.records("shard")} == {0, 1}, "both shards to begin"
    )
    for shard in range(2):
        empty.cluster.preempt(f"{boxes.job_id('shards')}_{shard}")
    boxes.until(lambda: boxes.status()["state"] == "done", "the end", 300)

    for shard in range(2):
        attempts = boxes.attempts(f"shard:{shard}")
        assert [attempt.cause for attempt in attempts] == ["preemption", "done"]
        assert [attempt.slurm_restart for attempt in attempts] == [0, 1]
    boxes.until(lambda: boxes.processes() == [], "the end of its processes", 30)
