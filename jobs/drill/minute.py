"""A fault in every minute, and how much of the time goes into steps that count.

Time is what the journal tells: the seconds of the steps that led to the present state, in the time from the
first record of a step to the last. The sample log has to agree: the steps it holds, of all that were
computed, are the share of all seconds in the loop.
"""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from jobs.drill.job import Job, newest_checkpoint, reached, records
from jobs.drill.lab import Lab, proved, steps_of
from jobs.drill.processes import restarts, seconds_to_next_round, send
from jobs.drill.results import Result
from jobs.outcomes import ExitCode
from monitoring.web.history import History
from univip.engine import sample_log

LEAST_USEFUL = 0.95
_MINUTES = 3  # of one run
_MINUTE_S = 60.0
_MARGIN_S = 5.0  # at both ends of a minute, so that two faults are never one
_MOST_APART = 0.01  # of what journal and sample log say
_SIZE = (
    "cluster.workers_per_node=2",
    "views.scene_size=64",
    "train.global_batch=24",
    "train.max_steps=1000000",
    "checkpoint.every_steps=5",
    "data.workers=1",
)


def minutes(lab: Lab, number: int, draws: random.Random) -> Result:
    """In each minute one of the ranks or of the processes that read for them dies."""
    run_dir = lab.new("minute", *_SIZE)
    moments: list[float] = []
    with Job(run_dir) as job:
        job.until(partial(reached, run_dir), "the first data step")
        start = time.monotonic()
        for minute in range(_MINUTES):
            at = minute * _MINUTE_S + draws.uniform(_MARGIN_S, _MINUTE_S - _MARGIN_S)
            _sleep_until(start + at)
            victims = job.until(partial(_victims, job), "a rank")
            moments.append(send(draws.choice(victims), signal.SIGKILL))
        _sleep_until(start + _MINUTES * _MINUTE_S)
        send(job.agent, signal.SIGTERM)
        code = job.wait()
    is_well = code == ExitCode.REQUEUE and all(moments)
    useful, apart = useful_share(run_dir)
    problems = [] if is_well else [f"the job ended with {code}: {run_dir.name}"]
    if useful < LEAST_USEFUL:
        problems.append(f"only {useful:.1%} of the time was useful: {run_dir.name}")
    if apart > _MOST_APART:
        problems.append(f"journal and sample log differ by {apart:.1%} of the time: {run_dir.name}")
    return Result(
        "minute",
        number,
        trials=len(moments),
        detected=restarts(run_dir, "killed", "crash"),
        recovered=len(moments) if is_well and newest_checkpoint(run_dir) == reached(run_dir) else 0,
        seconds=seconds_to_next_round(steps_of(records(run_dir)), moments),
        useful=useful,
        problems=problems,
        **proved(run_dir, steps_of(records(run_dir))),
    )


def useful_share(run_dir: Path) -> tuple[float, float]:
    """Share of the time that went into steps that count, and how far the sample log is from saying the same.

    Args:
        run_dir: A run that has ended, with a record of every step.
    """
    history = History(run_dir)
    history.update()
    times, counts = history.x("time"), ~history.is_superseded()
    whole_s = times.max() - times.min()
    seconds = np.where(times > times.min(), history.seconds(), 0.0)  # the first ended as the time began
    useful = float(seconds[counts].sum() / whole_s)
    logged = len(sample_log.read(run_dir / sample_log.FILE_NAME))
    by_log = logged / len(times) * float(seconds.sum() / whole_s)
    return useful, abs(useful - by_log)


def _victims(job: Job) -> list[int]:
    return [*job.ranks().values(), *job.readers()[-1:]]


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
