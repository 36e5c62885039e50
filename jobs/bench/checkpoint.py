"""What checkpoints cost the step loop, against the way everybody writes them.

The state is that of a ResNet-50 run. Two stretches of steps take turns: one ends with the manager's save,
which copies and leaves the writing to a thread, the other with `torch.save` and an fsync in the loop. A step
is arithmetic that lasts about 200 ms and an update of every parameter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from jobs.bench.result import Result
from jobs.config import Config
from jobs.train import fresh_method
from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.engine.state import TrainState
from univip.optim.groups import make_optimizer
from univip.resilience.guard import Guard

STEP_S = 0.2
_SIZE = 768  # of the matrices that are multiplied


class _Stretch(NamedTuple):
    steps_s: list[float]
    blocked_s: float

    @property
    def share(self) -> float:
        """Blocked time beside that of the steps."""
        return self.blocked_s / sum(self.steps_s)


def checkpoint(folder: Path, *, every_steps: int = 10, repetitions: int = 4) -> Result:
    """Share of step time that saves block the loop.

    Args:
        folder: Where the checkpoints are written; its file system decides much.
        every_steps: Steps between two saves.
        repetitions: Stretches of each side, of which the median counts; the first of each does not.
    """
    state = _state()
    work = _work()
    ours: list[_Stretch] = []
    theirs: list[_Stretch] = []
    with TemporaryDirectory(dir=folder, prefix="univip-bench-") as name:
        manager = CheckpointManager(Path(name) / "checkpoints", keep_last=1)
        for number in range(repetitions + 1):
            state.data_step = number

            def save() -> None:
                manager.save(state, Origin())

            ours.append(_stretch(state, work, every_steps, save))
            manager.wait()  # the other side has the disk for itself
            theirs.append(_stretch(state, work, every_steps, lambda: _save_in_loop(state, Path(name))))
        quiet = _stretch(state, work, every_steps, lambda: None)
        state.data_step += 1
        manager.save(state, Origin())
        start = time.perf_counter()
        busy: list[float] = []
        while manager.is_writing:
            busy += _stretch(state, work, 1, lambda: None).steps_s
        background_s = time.perf_counter() - start
        manager.wait()
        size_bytes = (manager.path(state.data_step) / layout.TENSORS).stat().st_size
    value, reference = (median(each.share for each in side[1:]) for side in (ours, theirs))
    return Result(
        name="checkpoint",
        value=value,
        unit="share of step time",
        reference=reference,
        reference_name="torch.save and fsync in the loop",
        ratio=value / reference,
        better="lower",
        details={
            "blocked_s": round(median(each.blocked_s for each in ours[1:]), 4),
            "reference_blocked_s": round(median(each.blocked_s for each in theirs[1:]), 4),
            "write_s": round(background_s, 3),
            "step_ms": round(1000 * median(quiet.steps_s), 1),
            "step_during_write_ms": round(1000 * median(busy), 1),
            "size_mb": round(size_bytes / 1e6, 1),
            "every_steps": every_steps,
        },
    )


def _state() -> TrainState:
    method = fresh_method(Config(), torch.device("cpu"))
    optimizer = make_optimizer(Config().optim, method.online)
    for parameter in method.online.parameters():  # as after the first step
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return TrainState(method, optimizer, Guard(Config().resilience))


def _work() -> Callable[[], None]:
    """Arithmetic of about `STEP_S` on an otherwise idle machine, the same amount each time."""
    matrix = torch.rand(_SIZE, _SIZE)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    repetitions = max(1, round(STEP_S / median(times)))

    def work() -> None:
        for _ in range(repetitions):
            matrix @ matrix

    return work


def _stretch(
    state: TrainState, work: Callable[[], None], num_steps: int, save: Callable[[], None]
) -> _Stretch:
    parameters: list[torch.Tensor] = list(state.method.online.parameters())
    steps_s = []
    for _ in range(num_steps):
        start = time.perf_counter()
        work()
        with torch.no_grad():
            torch._foreach_add_(parameters, 1e-6)
        steps_s.append(time.perf_counter() - start)
    start = time.perf_counter()
    save()
    return _Stretch(steps_s, time.perf_counter() - start)


def _save_in_loop(state: TrainState, folder: Path) -> None:
    with (folder / "state.pt").open("wb") as file:
        torch.save(state.tensors(), file)
        file.flush()
        os.fsync(file.fileno())
