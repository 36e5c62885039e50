"""Everything that SLURM does to a training; it goes on by itself, and ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]


def test_a_pipeline_on_two_nodes_outlives_all_of_it_at_once(empty: Runs) -> None:
    # The two time limits must come before the end, however fast the machine is.
    request = [
        "cluster.nodes.min=2",
        "cluster.nodes.max=2",
        "cluster.qos=low",
        "train.max_steps=400",
        "data.max_images=20",
        "proposals.shard_images=1",
    ]
    cluster = empty.cluster
    run = empty.submit(*request)
    boxes = empty.boxes()
    followed = empty.start("logs", run.name, "-f")

    # The process of one shard.
    run.until(lambda: boxes.attempts("shard:3"), "shard 3")
    [victim] = boxes.processes("in-slurm", "shard:3")
    os.kill(victim, signal.SIGKILL)
    boxes.until(lambda: boxes.status()["state"] == "done", "the boxes", 400)
    # What SLURM does.
    run.until_running(1)
    job = run.job_id("train")
    cluster.power("restart-controller")
    cluster.preempt(job)
    for attempt in (2, 3):
        run.until_running(attempt)
        cluster.end_time(job)  # training from the start would need longer than what is left
        run.until(lambda: len(run.attempts()) > attempt, f"attempt {attempt + 1}")  # noqa: B023
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    run.until_running(4)
    assert run.status()["state"] == "running"
    # The power of the node that does not lead.
    lost = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).split()[1]
    cluster.power("kill-node", lost.removeprefix("node"))
    run.until_running(5)
    cluster.power("start-node", lost.removeprefix("node"))
    run.until_done()

    assert [attempt.cause for attempt in boxes.attempts("shard:3")] == ["killed", "done"]
    assert {path.name for path in (boxes.directory / "shards").glob("*.json")} == {
        f"shard-{number:05d}.json" for number in range(20)
    }
    causes = [attempt.cause for attempt in run.attempts()]
    assert causes == ["preemption", "time_limit", "time_limit", "node_failure", "done"]
    assert {attempt.slurm_job_id for attempt in run.attempts()} == {job}
    assert run.restarts() == causes[:-1]
    # Each stopped at a checkpoint of the step it had reached; only the node that died cost some.
    told = [(record["attempt"], record["data_step"]) for record in run.records("step")]
    by_attempt = [[step for number, step in told if number == each.number] for each in run.attempts()]
    assert [step for steps in by_attempt[:4] for step in steps] == list(range(1, by_attempt[3][-1] + 1))
    assert by_attempt[3][-1] - by_attempt[4][0] < 40
    assert by_attempt[4][-1] == 400
    assert {record["world_size"] for record in run.records("round")} == {4}
    said = followed.communicate(timeout=60)[0]
    for words in ("shard:3 was killed by signal 9", *(attempt.message for attempt in run.attempts())):
        assert words in said
    # And the same, while nobody does anything.
    calm = empty.submit(*request, "--fork")
    calm.until_done()
    assert calm.name != run.name
    assert [attempt.cause for attempt in calm.attempts()] == ["done"]
    assert run.digest() == calm.digest()


def test_a_node_that_loses_its_power_costs_the_steps_since_the_last_checkpoint(
    undisturbed: Run, runs: Runs
) -> None:
    cluster = runs.cluster
    run = runs.submit("checkpoint.every_steps=20")
    run.until_running(1)
    run.until(lambda: run.reached() > 45, "data step 45")
    lost = run.attempts()[0].host

    cluster.power("kill-node", lost.removeprefix("node"))
    run.until_done()
    cluster.power("start-node", lost.removeprefix("node"))

    first, second = run.attempts()
    assert (first.exit_code, first.cause) == (None, "node_failure")
    assert second.host != lost
    assert first.slurm_job_id == second.slurm_job_id
    assert run.restarts() == ["node_failure"]
    assert run.digest() == undisturbed.digest()


def test_a_job_that_an_administrator_cancels_stays_cancelled_and_can_be_resumed(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit()
    run.until_running(1)
    runs.cluster.run("scancel", run.job_id("train"))
    run.until(lambda: run.status()["state"] == "cancelled", "the end", 60)

    assert [(attempt.exit_code, attempt.cause) for attempt in run.attempts()] == [(75, "cancelled")]
    assert run.status()["stage"] == "train"

    runs.univip("resume", run.name)
    run.until_done()

    assert [attempt.cause for attempt in run.attempts()] == ["cancelled", "done"]
    assert run.digest() == undisturbed.digest()


def test_a_training_that_is_killed_beyond_requeue_is_brought_to_its_evaluation(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit()
    run.until_running(1)
    first = run.job_id("train")

    # The task with all that it started: nobody is left to save anything or to ask for a requeue.
    for pid in [*run.tasks("train"), *run.processes()]:
        os.kill(pid, signal.SIGKILL)
    run.until(lambda: run.status()["state"] in ("failed", "stopped"), "the end of the job", 120)
    assert run.status()["stage"] == "train"
    runs.within = ["srun", "--ntasks=1", "--cpus-per-task=1", "--mem-per-cpu=500"]
    assert "resubmitted in train" in runs.univip("supervise", "--once")
    runs.within = []
    assert runs.univip("supervise", "--once") == ""
    run.until_done()

    assert run.job_id("train") != first
    assert [attempt.cause for attempt in run.attempts()] == ["killed", "done"]
    assert run.digest() == undisturbed.digest()
    ledger = [json.loads(line) for line in (run.directory / "ledger.jsonl").read_text().splitlines()]
    assert [record["cause"] for record in ledger if record["kind"] == "supervise"] == ["killed"]
