"""SIGKILL of any process of the training job, at any moment, changes nothing about what is learnt.

Proof is the digest of the last checkpoint: equal to that of a run that nobody touched, at the same world size.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

WORKERS = [1, 2, 3]
WORKERS_DIE_WITHIN_S = 3.0


def kill_a_rank(job: Job, draws: random.Random) -> int:
    """SIGKILL one living rank; return its number."""
    ranks = job.until(job.ranks, "a rank")
    rank = draws.choice(sorted(ranks))
    os.kill(ranks[rank], signal.SIGKILL)
    return rank


def let_pass(job: Job, data_step: int, draws: random.Random) -> None:
    """Wait until the run has reached a data step, and a random part of a step longer."""
    job.until(lambda: job.run.reached() >= data_step, f"data step {data_step}")
    time.sleep(draws.uniform(0, 0.3))


def test_a_killed_rank_is_replaced_and_the_digest_stays(runs: Runs, start: Callable[..., Job]) -> None:
    run = runs.new("killed", workers=2)
    draws = random.Random(0)
    job = start(run)
    let_pass(job, 7, draws)
    kill_a_rank(job, draws)

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert [record["cause"] for record in run.records("restart")] == ["killed"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_any_rank_may_be_killed_again_and_again(
    runs: Runs, start: Callable[..., Job], workers: int
) -> None:
    run = runs.new("ranks", workers=workers)
    draws = random.Random(workers)
    job = start(run)
    for data_step in (1, 4, 5, 13):
        let_pass(job, data_step, draws)
        kill_a_rank(job, draws)

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert {record["cause"] for record in run.records("restart")} == {"killed"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_kill_during_a_checkpoint_write_leaves_whole_checkpoints_only(
    runs: Runs, start: Callable[..., Job], workers: int
) -> None:
    run = runs.new("writing", workers=workers)
    draws = random.Random(workers)
    job = start(run)
    cut_off = 0
    for delay_s in (0.0, 0.005, 0.01, 0.02):
        seen = len(run.records("step"))
        job.until(
            lambda: len(run.records("step")) > seen and list(run.checkpoints.glob(".tmp-step-*")),  # noqa: B023
            "a checkpoint write",
        )
        time.sleep(delay_s)
        os.kill(job.ranks()[0], signal.SIGKILL)
        cut_off += bool(list(run.checkpoints.glob(".tmp-step-*")))

    assert cut_off > 0
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert not list(run.checkpoints.glob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", WORKERS)
def test_a_killed_agent_takes_its_workers_along_and_the_next_attempt_goes_on(
    runs: Runs, start: Callable[..., Job], workers: int
) -> None:
    run = runs.new("agent", workers=workers)
    draws = random.Random(workers)
    job = start(run)
    let_pass(job, 5, draws)
    os.kill(job.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    job.process.wait()
    job.until(lambda: not job.processes(), "the end of the workers", timeout_s=10)
    assert time.monotonic() - killed < WORKERS_DIE_WITHIN_S

    job = start(run)
    let_pass(job, 11, draws)
    job.kill()  # agent and workers in one stroke

    job = start(run)
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert len(run.records("restore")) >= 2
