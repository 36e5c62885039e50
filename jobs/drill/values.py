"""Wrong values, in process: planted, caught before anything takes them, and computed again by replay."""

from __future__ import annotations

import random
from functools import partial
from itertools import pairwise

from jobs.drill.lab import (
    ACTIONS,
    IN_PROCESS_TARGET,
    PLANTED,
    Lab,
    Told,
    decided,
    proved,
    seconds_to_good,
    steps_of,
)
from jobs.drill.results import Result
from jobs.replay import replay
from univip.engine.trainer import Ending
from univip.resilience.faults import marker_of

_PER_RUN = 2
_APART = 4  # data steps, so that each fault is met on its own
# Of data steps 0 to 15: late enough for a healthy checkpoint, and for a window of usual losses.
_FIRST, _LAST = 5, IN_PROCESS_TARGET - 3
_SPIKES = ("resilience.spike_window=4", "resilience.max_consecutive_spikes=2")


def controls(lab: Lab, number: int, draws: random.Random) -> Result:
    """A run that nothing happens to."""
    run_dir = lab.in_process("control", f"train.seed={draws.randrange(1000)}")
    told = Told()
    ending = lab.train(run_dir, told)
    return Result(
        "control",
        number,
        trials=1,
        recovered=int(ending is Ending.DONE),
        false_actions=sum(len(told.of(kind)) for kind in ACTIONS),
        **proved(run_dir, steps_of(told.records)),
    )


def _values(
    lab: Lab, number: int, draws: random.Random, *, fault: str, act: str, more: tuple[str, ...]
) -> Result:
    """Some faults of one kind in one run; `act` is what the guard must do: skip or rollback."""
    at = _data_steps(draws)
    run_dir = lab.in_process("values", *more)
    told = Told()
    plant = ",".join(f"{fault}@{data_step}" for data_step in at)
    ending = lab.train(run_dir, told, plant=plant)
    found = [record["data_step" if act == "skip" else "at"] for record in decided(run_dir, act)]
    steps = steps_of(told.records)
    moments = [marker_of(run_dir / PLANTED, f"{fault}@{step}", 0).stat().st_mtime for step in at]
    return Result(
        fault,
        number,
        trials=len(at),
        detected=len(set(found) & set(at)),
        recovered=len(at) if ending is Ending.DONE else 0,
        false_actions=sum(len(told.of(kind)) for kind in ACTIONS) - len(set(found) & set(at)),
        seconds=seconds_to_good(steps, moments),
        replayed=sum(replay(run_dir, str(step))["same_bits"] is True for step in found),
        replays=len(at),
        **proved(run_dir, steps),
    )


def _data_steps(draws: random.Random) -> list[int]:
    while True:
        at = sorted(draws.sample(range(_FIRST, _LAST + 1), _PER_RUN))
        if all(later - earlier >= _APART for earlier, later in pairwise(at)):
            return at


def persistent_spike(lab: Lab, number: int, draws: random.Random) -> Result:
    """A loss a hundred times the usual, two steps in a row: one rollback."""
    at = draws.randrange(8, _LAST)
    run_dir = lab.in_process("spike", *_SPIKES)
    told = Told()
    ending = lab.train(run_dir, told, plant=f"spike:loss@{at},spike:loss@{at + 1}")
    rollbacks = decided(run_dir, "rollback")
    is_seen = [(each["at"], each["reason"]) for each in rollbacks] == [(at + 1, "spike")]
    steps = steps_of(told.records)
    return Result(
        "spike:loss",
        number,
        trials=1,
        detected=int(is_seen),
        recovered=int(ending is Ending.DONE),
        false_actions=len(rollbacks) - is_seen + sum(len(told.of(kind)) for kind in ("skip", "corruption")),
        seconds=seconds_to_good(
            steps, [marker_of(run_dir / PLANTED, f"spike:loss@{at + 1}", 0).stat().st_mtime]
        ),
        replayed=int(replay(run_dir, str(at + 1))["same_bits"] is True) if is_seen else 0,
        replays=1,
        **proved(run_dir, steps),
    )


nan_activation = partial(_values, fault="nan:activation", act="skip", more=())
nan_loss = partial(_values, fault="nan:loss", act="skip", more=())
nan_gradient = partial(_values, fault="nan:gradient", act="skip", more=())
overflow_pixel = partial(_values, fault="overflow:pixel", act="skip", more=("train.precision=bf16",))
nan_parameter = partial(_values, fault="nan:parameter", act="rollback", more=())
nan_buffer = partial(_values, fault="nan:buffer", act="rollback", more=())
nan_optimizer = partial(_values, fault="nan:optimizer", act="rollback", more=())
nan_target = partial(_values, fault="nan:target", act="rollback", more=())
