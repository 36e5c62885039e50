"""SIGKILL of any process of the training job, at any moment, changes nothing about what is learnt.

Proof is the digest of the last checkpoint: that of a run of the same world size which nobody touched.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from univip.checkpoint import layout

if TYPE_CHECKING:
    from conftest import Job, Runs

START = Callable[..., "Job"]
WORLDS = pytest.mark.parametrize("workers", [1, 2, 3])
ORPHANS_LIVE_S = 15.0  # a second or two on an idle machine


def let_pass(job: Job, data_step: int, draws: random.Random) -> None:
    """Wait until the run has reached a data step, and a random part of a step or start longer."""
    job.until(lambda: job.run.reached() >= data_step, f"data step {data_step}")
    time.sleep(draws.uniform(0, 0.3))


def kill_a_rank(job: Job, draws: random.Random) -> None:
    ranks: dict[int, int] = job.until(job.ranks, "a rank")
    os.kill(draws.choice(list(ranks.values())), signal.SIGKILL)


def kill_the_agent(job: Job) -> None:
    """SIGKILL of the agent alone; everything else must be gone soon."""
    os.kill(job.process.pid, signal.SIGKILL)
    job.process.wait()
    job.until(lambda: not job.processes(), "orphans to end", timeout_s=ORPHANS_LIVE_S)


def test_a_killed_rank_is_replaced_and_the_digest_stays(runs: Runs, start: START) -> None:
    run = runs.new("killed", workers=2)
    draws = random.Random(0)
    job = start(run)
    let_pass(job, 7, draws)
    kill_a_rank(job, draws)

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert [record["cause"] for record in run.records("restart")] == ["killed"]


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_and_replaced(runs: Runs, start: START) -> None:
    run = runs.new("stopped", workers=3, overrides=["resilience.collective_timeout_s=4"])
    draws = random.Random(0)
    job = start(run)
    let_pass(job, 7, draws)
    os.kill(job.ranks()[1], signal.SIGSTOP)

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(3).digest()
    [restart] = run.records("restart")
    assert restart["cause"] == "hang"
    assert re.findall(r"rank \d was silent", restart["message"]) == ["rank 1 was silent"]
    # Time-out of the collective, and seconds to end the rank, not torch's half minute.
    [last, *_] = [step for step in run.records("step") if step["round"] == 1]
    before = max(step["time"] for step in run.records("step") if step["round"] == 0)
    assert last["time"] - before < 25


@pytest.mark.slow
@WORLDS
def test_any_rank_may_be_killed_again_and_again(runs: Runs, start: START, workers: int) -> None:
    run = runs.new("ranks", workers=workers)
    draws = random.Random(workers)
    job = start(run)
    for data_step in (1, 4, 5, 13):  # where one was passed already, the kill meets the start of a round
        let_pass(job, data_step, draws)
        kill_a_rank(job, draws)

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert run.lost() == []
    assert {record["cause"] for record in run.records("restart")} == {"killed"}


@pytest.mark.slow
@WORLDS
def test_a_kill_during_a_checkpoint_write_leaves_only_whole_checkpoints(
    runs: Runs, start: START, workers: int
) -> None:
    run = runs.new("writing", workers=workers)
    job = start(run)

    def unfinished() -> list[Path]:
        return list(run.checkpoints.glob(".tmp-step-*"))

    def has_begun(number: int) -> bool:
        return any(record["round"] == number for record in run.records("step"))

    cut_off = 0
    for number, delay_s in enumerate((0.0, 0.005, 0.01, 0.02)):
        job.until(partial(has_begun, number), f"a step of round {number}")
        job.until(unfinished, "a checkpoint write", poll_s=0.001)
        time.sleep(delay_s)
        os.kill(job.ranks()[0], signal.SIGKILL)
        cut_off += bool(unfinished())

    assert cut_off > 0
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert run.lost() == []
    assert not unfinished()


@pytest.mark.slow
def test_a_kill_after_the_last_step_does_not_keep_the_job_from_ending(runs: Runs, start: START) -> None:
    whole, run = runs.undisturbed(2), runs.new("late", workers=2)
    shutil.copytree(whole.checkpoints, run.checkpoints)  # every round goes straight to its end
    shutil.copy(whole.directory / "ledger.jsonl", run.directory)
    draws = random.Random(0)
    job = start(run)

    def has_ending_rank(number: int) -> bool:
        outcomes = (run.directory / "attempts" / "0001" / f"round-{number:02d}").glob("rank-*.json")
        return any(outcomes) or job.process.poll() is not None

    for number in range(2):
        job.until(partial(has_ending_rank, number), f"the end of round {number}", poll_s=0.001)
        time.sleep(draws.uniform(0, 0.02))
        for pid in list(job.ranks().values())[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    assert job.wait() == 0, job.stderr
    assert run.digest() == whole.digest()


@pytest.mark.slow
@WORLDS
def test_a_killed_agent_takes_its_workers_along_and_the_next_attempt_goes_on(
    runs: Runs, start: START, workers: int
) -> None:
    run = runs.new("agent", workers=workers)
    draws = random.Random(workers)
    job = start(run)
    let_pass(job, 5, draws)
    job.until(lambda: layout.data_steps(run.checkpoints), "a checkpoint")  # written beside the steps
    kill_the_agent(job)

    job = start(run)
    let_pass(job, 11, draws)
    job.kill()  # agent and workers in one stroke

    job = start(run)
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(workers).digest()
    assert run.lost() == []
    assert [record["attempt"] for record in run.records("restore")] == [2] * workers + [3] * workers


@pytest.mark.slow
def test_processes_that_read_photographs_may_be_killed_and_go_with_their_agent(
    runs: Runs, start: START
) -> None:
    run = runs.new("readers", workers=2, overrides=["data.workers=1"])
    draws = random.Random(0)
    job = start(run)
    let_pass(job, 5, draws)
    os.kill(job.readers()[-1], signal.SIGKILL)
    job.until(lambda: any(record["round"] == 1 for record in run.records("step")), "a step of a new round")
    kill_the_agent(job)

    job = start(run)
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
