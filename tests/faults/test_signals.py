"""A request to stop that the workers cannot follow: the agent ends them, in order and in time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from univip.checkpoint import layout

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

pytestmark = pytest.mark.slow
START = Callable[..., "Job"]


def last_attempt(run: Run) -> dict[str, object]:
    path = max(run.directory.glob("attempts/*/attempt.json"))
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document


def hanging(run: Run, start: START) -> Job:
    """A job whose rank 1 hangs at data step 8; loaders read for both."""
    job = start(run, plant="hang:1@8")
    job.until(lambda: list(run.directory.glob("planted/hang-*")), "the hang")
    assert job.readers()
    return job


def assert_it_goes_on(run: Run, runs: Runs, start: START) -> None:
    newest = layout.data_steps(run.checkpoints)[-1]
    layout.verify(run.checkpoints / layout.name_of(newest))
    job = start(run)
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert run.records("restart") == []


def test_a_step_that_is_too_long_ends_with_the_grace(runs: Runs, start: START) -> None:
    run = runs.new("grace", workers=2, overrides=["cluster.signal_delay_s=8", "data.workers=1"])
    job = hanging(run, start)

    os.kill(job.process.pid, signal.SIGUSR2)

    assert job.wait() == 75, job.stderr  # and no process is left
    attempt = last_attempt(run)
    assert (attempt["exit_code"], attempt["cause"]) == (75, "stopped")
    assert "no step ended within 4 s" in str(attempt["message"])
    assert_it_goes_on(run, runs, start)


def test_a_stop_that_cannot_be_written_down_holds_all_the_same(runs: Runs, start: START) -> None:
    run = runs.new("unwritten", workers=2, overrides=["cluster.signal_delay_s=8", "data.workers=1"])
    job = hanging(run, start)
    (run.directory / "attempts" / "0001" / "stop").symlink_to("/nowhere/stop")

    os.kill(job.process.pid, signal.SIGUSR2)

    assert job.wait() == 75, job.stderr
    attempt = last_attempt(run)
    assert (attempt["exit_code"], attempt["cause"]) == (75, "stopped")
    assert "could not be told to stop" in str(attempt["message"])
    assert_it_goes_on(run, runs, start)


def test_a_second_signal_ends_the_workers_at_once(runs: Runs, start: START) -> None:
    run = runs.new("twice", workers=2, overrides=["data.workers=1"])
    job = hanging(run, start)
    os.kill(job.ranks()[1], signal.SIGSTOP)  # not even a signal of the agent ends it
    stop_file = run.directory / "attempts" / "0001" / "stop"

    os.kill(job.process.pid, signal.SIGTERM)
    os.kill(job.process.pid, signal.SIGTERM)
    job.until(stop_file.exists, "the request")
    time.sleep(2)
    assert job.process.poll() is None  # two within moments are one
    begun = time.monotonic()
    os.kill(job.process.pid, signal.SIGTERM)

    assert job.wait() == 75, job.stderr
    assert time.monotonic() - begun < 30  # of a grace of 110
    attempt = last_attempt(run)
    assert (attempt["exit_code"], attempt["cause"]) == (75, "stopped")
    assert "second signal" in str(attempt["message"])
    assert_it_goes_on(run, runs, start)
