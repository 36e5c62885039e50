"""A disk that dies, fails or is slow under a run, in process.

Every change that the run makes to its folder is a point (`jobs/drill/storage.py`). Here the process ends at
each in turn, or loses power there, or the change and some after it fail. What is left must lead to the end of
a run that nothing happened to, or, once the ledger holds a rollback, to that of a run which rolled back.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from jobs.drill.damage import flip_bit
from jobs.drill.lab import ACTIONS, Lab, Told, decided, digest, proved, steps_of
from jobs.drill.results import Result
from jobs.drill.storage import Dead, Durable, Storage
from univip.checkpoint import layout
from univip.engine.trainer import Ending


class Stretch(NamedTuple):
    """Of the life of a run: the data steps in which its points count, and what is planted there."""

    begin: int  # 0: of a run that has not begun; else of one that died after it and begins again
    end: int
    plant: str = ""


_FRESH = Stretch(0, 6)  # the first checkpoints of all
_PUBLISH = Stretch(9, 12)  # a checkpoint, what it proves, and what it makes superfluous
_ROLLBACK = Stretch(9, 14, "nan:parameter@11")  # a rollback, and the next checkpoint
_FAILURES = 4  # changes in a row, at most
_SLOW_S = 0.02
_TRIES = 3


def _start(lab: Lab, stretch: Stretch, name: str) -> Path:
    return lab.copy(lab.cut_off(stretch.begin), name) if stretch.begin else lab.in_process(name)


def _watch(storage: Storage, told: Told, stretch: Stretch) -> None:
    """Arm the storage in this stretch of the run."""
    storage.is_armed = True

    def look(record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["data_step"] >= stretch.end:
            storage.is_armed = False

    told.on_record = look


@cache
def _points(lab: Lab, stretch: Stretch) -> list[str]:
    """All points of a stretch, in order."""
    run_dir = _start(lab, stretch, "points")
    told = Told()
    with Storage(run_dir) as storage:
        _watch(storage, told, stretch)
        lab.train(run_dir, told, plant=stretch.plant)
    return storage.points


@cache
def _rolled_back(lab: Lab) -> str:
    """Digest of the run with the planted rollback, and nothing else."""
    run_dir = _start(lab, _ROLLBACK, "rolled-back")
    lab.train(run_dir, Told(), plant=_ROLLBACK.plant)
    return digest(run_dir)


def _ended(
    lab: Lab, number: int, draws: random.Random, *, kind: str, stretches: tuple[Stretch, ...], power: bool
) -> Result:
    """The process ends at one point."""
    places = [(stretch, point) for stretch in stretches for point in _points(lab, stretch)]
    is_last = number + 1 == len(places)
    stretch, point = places[number]
    for _ in range(_TRIES):
        run_dir = _start(lab, stretch, kind.replace(":", "-"))
        durable = Durable(run_dir) if power else None
        told = Told()
        with Storage(run_dir, die_at=point, durable=durable) as storage:
            _watch(storage, told, stretch)
            try:
                lab.train(run_dir, told, plant=stretch.plant)
            except Dead:
                pass
            except Exception:
                # The death is raised in the thread that does the write. Where that is not this one, this one
                # ends by what a process without that thread would never have seen, and which says nothing.
                if not storage.is_dead:
                    raise
        if durable is not None:
            if storage.is_dead:
                durable.cut(draws)
            durable.close()
        if storage.is_dead:
            break
    else:  # threads meet in another order now and then, and a mark is set later
        return Result(kind, number, is_last=is_last)
    ended = time.time()
    after = Told()
    errors = lab.finish(run_dir, after, plant=stretch.plant)
    must = _rolled_back(lab) if decided(run_dir, "rollback") else lab.calm()
    steps = steps_of([*told.records, *after.records])
    corrupt = len(after.of("corruption"))
    again = steps_of(after.records)
    problems = [f"{point}: {error}" for error in errors]
    problems += [f"{point}: a checkpoint was left that is damaged"] * corrupt
    durably = [each["data_step"] for each in told.of("checkpoint") if each["outcome"] == "success"]
    restored = after.of("restore")[0]["data_step"] if after.of("restore") else 0
    if durably and restored < durably[-1] and not decided(run_dir, "rollback"):
        problems.append(f"{point}: checkpoint {durably[-1]} was told to be durable, and {restored} was there")
    result = Result(
        kind,
        number,
        trials=1,
        recovered=1,
        seconds=[again[0].time - ended] if again else [],
        is_equal=digest(run_dir) == must,
        problems=problems,
        is_last=is_last,
        **proved(run_dir, steps),
    )
    if not result.is_equal:
        result.problems.append(f"{point}: another digest")
    return result


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def _failing(lab: Lab, number: int, draws: random.Random, *, kind: str, error_number: int) -> Result:
    """Some changes in a row fail while checkpoints are written; then the disk is well again."""
    run_dir = _start(lab, _PUBLISH, kind.replace(":", "-"))
    told, warnings = Told(), _Warnings()
    point = draws.choice([each for each in _points(lab, _PUBLISH) if "checkpoints/" in each])
    logger = logging.getLogger("univip")
    logger.addHandler(warnings)
    begun = time.time()
    try:
        with Storage(
            run_dir, fail_at=point, failures=draws.randint(1, _FAILURES), error_number=error_number
        ) as storage:
            _watch(storage, told, _PUBLISH)
            errors = lab.finish(run_dir, told)
    finally:
        logger.removeHandler(warnings)
    failures = [each for each in told.records if each.get("outcome") == "failure"]
    is_told = bool(failures or errors or warnings.count or told.of("sample_log"))
    steps = steps_of(told.records)
    since = failures[0]["time"] if failures else begun
    result = Result(
        kind,
        number,
        trials=int(storage.failed > 0),
        detected=int(storage.failed > 0 and is_told),
        recovered=int(storage.failed > 0),
        false_actions=sum(len(told.of(each)) for each in ACTIONS),
        seconds=[next(step.time for step in steps if step.time >= since) - since],
        is_equal=digest(run_dir) == lab.calm(),
        **proved(run_dir, steps),
    )
    if storage.failed and not result.holds():
        result.problems.append(f"from {point}")
    return result


def slow(lab: Lab, number: int, draws: random.Random) -> Result:
    """Every change takes longer: nothing else may come of it."""
    run_dir = _start(lab, _PUBLISH, "slow")
    told = Told()
    with Storage(run_dir, delay_s=_SLOW_S) as storage:
        storage.is_armed = True
        ending = lab.train(run_dir, told)
    return Result(
        "disk:slow",
        number,
        trials=1,
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(each)) for each in ACTIONS),
        is_equal=digest(run_dir) == lab.calm(),
        **proved(run_dir, steps_of(told.records)),
    )


def rotten(lab: Lab, number: int, draws: random.Random) -> Result:
    """What the system holds in memory is right, and one bit on the disk is not: reading back must find it."""
    run_dir = lab.in_process("rotten", "checkpoint.every_steps=1")  # so that there is one to be read back
    told = Told()
    real = os.posix_fadvise
    spoilt: list[str] = []

    def drop(descriptor: int, *arguments: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == layout.TENSORS:
            flip_bit(path, draws)
            spoilt.append(path.parent.name)
        real(descriptor, *arguments)

    os.posix_fadvise = drop
    try:
        ending = lab.train(run_dir, told)
    finally:
        os.posix_fadvise = real
    found = [record["checkpoint"] for record in told.of("corruption")]
    return Result(
        "disk:rot",
        number,
        trials=1,
        detected=int(bool(spoilt) and found == spoilt),
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(each)) for each in ACTIONS) - len(found),
        is_equal=digest(run_dir) == lab.calm(),
        **proved(run_dir, steps_of(told.records)),
    )


Exercise = Callable[[Lab, int, random.Random], Result]
_publish, _rollback = (_FRESH, _PUBLISH), (_ROLLBACK,)
crash_in_publish: Exercise = partial(_ended, kind="crash:publish", stretches=_publish, power=False)
crash_in_rollback: Exercise = partial(_ended, kind="crash:rollback", stretches=_rollback, power=False)
power_in_publish: Exercise = partial(_ended, kind="power:publish", stretches=_publish, power=True)
power_in_rollback: Exercise = partial(_ended, kind="power:rollback", stretches=_rollback, power=True)
full: Exercise = partial(_failing, kind="disk:full", error_number=errno.ENOSPC)
read_only: Exercise = partial(_failing, kind="disk:readonly", error_number=errno.EROFS)
failing: Exercise = partial(_failing, kind="disk:error", error_number=errno.EIO)
