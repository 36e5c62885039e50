"""How long a rank works in a step, without the time in which it waits for others.

Ranks wait for each other at every normalisation, forward and backward, so that from outside a step takes all
of them equally long, however slow one is. What a rank spends in collectives is therefore taken off. Times are
read a step later: on a GPU they are those of the device, which is a step ahead of nobody then, and reading
them stalls nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event  # seconds of the host's clock, or a place in the queue of a GPU
_MOST_WAITS = 10_000  # of one step; more were never asked for

_waits: deque[tuple[Mark, Mark]] = deque(maxlen=_MOST_WAITS)


@contextmanager
def waiting(device: torch.device) -> Iterator[None]:
    """Count the time of a collective as waiting for others."""
    start = _mark(device)
    yield
    _waits.append((start, _mark(device)))


class Pace:
    """Seconds of own work of one rank, step by step."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._start: Mark = 0.0
        self._before: tuple[float, Mark, Mark, list[tuple[Mark, Mark]]] | None = None

    def begin(self, device: torch.device) -> None:
        """The step begins."""
        _waits.clear()
        self._device = device
        self._start = _mark(device)

    def end(self, loading_s: float) -> float:
        """The work of the step is queued, and only what all ranks do together follows.

        Args:
            loading_s: Waited for the batch of this step, before it began.

        Returns:
            Seconds of own work in the step before this one, whose results the host has read; 0 if there was
            none.
        """
        before, waits = self._before, list(_waits)
        self._before = (loading_s, self._start, _mark(self._device), waits)
        if before is None:
            return 0.0
        loading_s, start, stop, waits = before
        return loading_s + _seconds(start, stop) - sum(_seconds(*wait) for wait in waits)


def _mark(device: torch.device) -> Mark:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(start: Mark, stop: Mark) -> float:
    if isinstance(start, float) and isinstance(stop, float):
        return stop - start
    assert not isinstance(start, float)
    assert not isinstance(stop, float)
    return float(start.elapsed_time(stop)) / 1000.0
