"""Everything that SLURM does to a training; it goes on by itself, and ends where an undisturbed one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def restarts(run: Run) -> list[str]:
    """Why attempts were needed after the first, as the journal tells it."""
    return [record["cause"] for record in run.records("restart")]


def until_running(run: Run, attempts: int) -> None:
    """Wait until an attempt has done some steps of its own."""
    run.until(lambda: len(run.attempts()) >= attempts, f"attempt {attempts}")
    run.until(
        lambda: any(record["attempt"] == run.attempts()[-1].number for record in run.records("step")),
        f"steps of attempt {attempts}",
    )


def test_time_limits_preemption_and_requeues_cost_no_step(undisturbed: Run, runs: Runs) -> None:
    cluster = runs.cluster
    # One minute is the shortest limit that SLURM knows, and not enough.
    run = runs.submit("cluster.time_h=0.0166", "cluster.qos=low", "+cluster.extra.nodelist=node4")
    job = run.job_id("train")

    until_running(run, 1)
    cluster.run(
        "sbatch", "--qos=high", "--nodelist=node4", "--exclusive", "--wrap=sleep 2", "--output=/dev/null"
    )
    run.until(lambda: run.attempts()[0].ended, "the end of attempt 1")
    run.until(lambda: run.status()["state"] == "queued", "the job to be back in the queue", 60)
    until_running(run, 2)
    cluster.run("scontrol", "requeue", job)
    until_running(run, 3)
    cluster.power("restart-controller")
    run.until_done()

    causes = [attempt.cause for attempt in run.attempts()]
    assert causes[:2] == ["preemption", "stopped"]
    assert causes[-1] == "done"
    assert set(causes[2:-1]) <= {"time_limit"}
    assert [attempt.exit_code for attempt in run.attempts()] == [75] * (len(causes) - 1) + [0]
    assert restarts(run) == [cause for cause in causes[:-1] if cause != "stopped"]
    # Each stopped at a checkpoint of the step it had reached: nothing was done twice.
    steps = [record["data_step"] for record in run.records("step")]
    assert steps == list(range(1, len(steps) + 1))
    assert run.digest() == undisturbed.digest()


def test_a_training_outlasts_its_time_limit_again_and_again(undisturbed: Run, runs: Runs) -> None:
    run = runs.submit("cluster.time_h=0.0166", "train.max_steps=600", "checkpoint.every_steps=1000")

    run.until(lambda: len(run.attempts()) >= 3, "the second time limit", 240)
    runs.univip("cancel", run.name)
    run.until(lambda: run.status()["state"] == "cancelled", "the end", 60)

    first, second, *_ = run.attempts()
    assert (first.exit_code, first.cause) == (75, "time_limit")
    assert (second.exit_code, second.cause) == (75, "time_limit")
    assert restarts(run)[:2] == ["time_limit", "time_limit"]
    starts = [record["data_step"] for record in run.records("restore") if record["rank"] == 0]
    assert starts == sorted(set(starts))


def test_a_node_that_loses_its_power_costs_the_steps_since_the_last_checkpoint(
    undisturbed: Run, runs: Runs
) -> None:
    cluster = runs.cluster
    run = runs.submit("checkpoint.every_steps=20")
    until_running(run, 1)
    run.until(lambda: run.reached() > 45, "data step 45")
    lost = run.attempts()[0].host

    cluster.power("kill-node", lost.removeprefix("node"))
    run.until_done()
    cluster.power("start-node", lost.removeprefix("node"))

    first, second = run.attempts()
    assert (first.exit_code, first.cause) == (None, "node_failure")
    assert second.host != lost
    assert first.slurm_job_id == second.slurm_job_id
    assert restarts(run) == ["node_failure"]
    assert run.digest() == undisturbed.digest()


def test_a_job_that_an_administrator_cancels_stays_cancelled_and_can_be_resumed(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit()
    until_running(run, 1)
    runs.cluster.run("scancel", run.job_id("train"))
    run.until(lambda: run.status()["state"] == "cancelled", "the end", 60)

    assert [(attempt.exit_code, attempt.cause) for attempt in run.attempts()] == [(75, "cancelled")]
    assert run.status()["stage"] == "train"

    runs.univip("resume", run.name)
    run.until_done()

    assert [attempt.cause for attempt in run.attempts()] == ["cancelled", "done"]
    assert run.digest() == undisturbed.digest()
