"""Everything that SLURM does to a training; it goes on by itself, and ends where an undisturbed one does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

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


def test_preemption_requeue_and_time_limits_cost_no_step(new_runs: Callable[[str], Runs]) -> None:
    # Two time limits of a minute must come before the end, however fast the machine is.
    steps = "train.max_steps=400"
    undisturbed = new_runs("undisturbed").submit(steps, "+cluster.extra.nodelist=node1")
    runs = new_runs("runs")
    cluster = runs.cluster
    run = runs.submit(steps, "cluster.qos=low", "+cluster.extra.nodelist=node4")
    job = run.job_id("train")

    until_running(run, 1)
    more_important = ["--qos=high", "--nodelist=node4", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"]
    cluster.run("sbatch", *more_important)
    until_running(run, 2)
    cluster.run("scontrol", "requeue", job)
    until_running(run, 3)
    cluster.power("restart-controller")
    for attempt in (3, 4):
        until_running(run, attempt)
        # SLURM takes whole minutes; training from the start would need longer than what is left.
        cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now+30")
        run.until(lambda: len(run.attempts()) > attempt, f"attempt {attempt + 1}")  # noqa: B023
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert run.status()["state"] in ("running", "queued")
    run.until_done()
    undisturbed.until_done()

    causes = [attempt.cause for attempt in run.attempts()]
    assert causes == ["preemption", "stopped", "time_limit", "time_limit", "done"]
    assert [attempt.exit_code for attempt in run.attempts()] == [75, 75, 75, 75, 0]
    assert {attempt.slurm_job_id for attempt in run.attempts()} == {job}
    assert restarts(run) == ["preemption", "time_limit", "time_limit"]
    # Each stopped at a checkpoint of the step it had reached: nothing was done twice.
    data_steps = [record["data_step"] for record in run.records("step")]
    assert data_steps == list(range(1, len(data_steps) + 1))
    assert run.digest() == undisturbed.digest()


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
