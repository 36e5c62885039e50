"""A training on two nodes: one attempt, and rounds on those nodes that are there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run, Runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def worlds(run: Run) -> list[int]:
    """Ranks of each round, as rank 0 tells it."""
    return [record["world_size"] for record in run.records("round") if record["rank"] == 0]


def agent_of(run: Run, node: int) -> int:
    """Process id of the agent of one node of the job."""
    for pid in run.processes("in-slurm", "train"):
        if f"SLURM_NODEID={node}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    return 0


def test_what_is_lost_of_two_nodes_is_left_out_or_comes_back_within_the_same_job(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit(
        "cluster.nodes.max=2",
        "train.max_steps=160",
        "checkpoint.every_steps=10",
        "+cluster.extra.exclude=node4",
    )
    run.until_step(25)
    assert worlds(run) == [4]
    assert len(run.attempts()) == 1

    # An agent that is killed on a node that lives takes part again.
    os.kill(agent_of(run, 1), signal.SIGKILL)
    run.until(lambda: len(worlds(run)) > 1 and worlds(run)[-1] == 4, "the agent to be back", 240)
    run.until_step(run.reached() + 15)
    assert len(run.attempts()) == 1

    # A node without power is left out, and the job is kept.
    job = run.job_id("train")
    nodes = runs.cluster.job(job)["NodeList"]
    assert nodes in ("node[1-2]", "node[2-3]", "node[1,3]")
    second = nodes[-2]
    lost_at = time.time()
    runs.cluster.power("kill-node", second)
    run.until(lambda: worlds(run)[-1] == 2, "a world of one node", 120)
    run.until_step(run.reached() + 15)
    # An agent is given up six seconds after its last sign; SLURM itself takes ten to know of the loss.
    alone = max(record["time"] for record in run.records("round"))
    went_on_s = min(record["time"] for record in run.records("step") if record["time"] > alone) - lost_at
    print(f"the power cut to the next step: {went_on_s:.1f} s")  # noqa: T201 - for `pytest -rP`
    assert went_on_s < 60

    # The first agent decides; if it is killed, its successor does, in a new attempt of the same job.
    os.kill(agent_of(run, 0), signal.SIGKILL)
    run.until(lambda: len(run.attempts()) == 2, "the next attempt", 120)
    run.until_done()
    runs.cluster.power("start-node", second)

    first, last = run.attempts()
    assert (first.cause, last.cause) == ("killed", "done")
    assert first.slurm_job_id == last.slurm_job_id == job
    assert first.slurm_restart == last.slurm_restart == 0
    causes = [record["cause"] for record in run.records("restart")]
    assert causes[-1] == "killed"
    assert "node_failure" in causes
    assert run.records("evaluate")


def test_a_job_that_loses_its_first_node_begins_again_and_uses_it_once_it_is_repaired(
    undisturbed: Run, runs: Runs
) -> None:
    run = runs.submit("cluster.nodes.max=2", "train.max_steps=100000", "+cluster.extra.exclude='node[3-4]'")
    run.until_running(1)
    job = run.job_id("train")
    assert worlds(run) == [4]
    first = run.attempts()[0].host

    lost_at = time.time()
    runs.cluster.power("kill-node", first.removeprefix("node"))
    run.until_running(2)  # not after the two minutes that torch would wait for the first node
    went_on_s = run.attempts()[1].started - lost_at
    print(f"the first node's power cut to the next attempt: {went_on_s:.1f} s")  # noqa: T201 - for `pytest -rP`
    assert worlds(run)[-1] == 2
    said = runs.univip("logs", run.name)
    assert f"SLURM has taken {first} from the job" in said, said
    runs.cluster.power("start-node", first.removeprefix("node"))
    runs.cluster.run("scontrol", "requeue", job)
    run.until_running(3)
    assert worlds(run)[-1] == 4
    runs.univip("cancel", run.name)
    run.until(lambda: run.status()["state"] == "cancelled", "the end")

    assert [attempt.cause for attempt in run.attempts()] == ["node_failure", "stopped", "cancelled"]
    assert {attempt.slurm_job_id for attempt in run.attempts()} == {job}
    assert run.attempts()[1].host != first


def test_a_node_that_computes_wrongly_is_left_out_and_the_job_goes_elsewhere_if_it_led(
    new_runs: Callable[[str], Runs],
) -> None:
    """A planted fault makes the product of matrices wrong on one node of the first attempt."""
    second = new_runs("second").submit("cluster.nodes.max=2", UNIVIP_PLANT="matmul:1@1")
    first = new_runs("first").submit(UNIVIP_PLANT="matmul:0@1")
    for run in (second, first):
        run.until_done(600)

    # The one that follows takes no part; the job is kept.
    assert worlds(second) == [2]
    assert [each.cause for each in second.attempts()] == ["done"]
    [record] = second.records("preflight")
    assert "matrix product" in record["what"]
    assert record["host"] != second.attempts()[0].host

    # The one that leads sends the job elsewhere.
    bad, good = first.attempts()
    assert (bad.cause, good.cause) == ("node_failure", "done")
    assert bad.slurm_job_id == good.slurm_job_id
    assert bad.host in bad.message
    assert good.host != bad.host
    assert first.runs.cluster.job(bad.slurm_job_id)["ExcNodeList"] == bad.host
