"""Where the seconds of a step go, by host clock.

On a GPU the phases measure when the host was busy or waiting; work queued in `forward` may be paid for in the
phase that reads a result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from univip.waiting import Pace

_RECENT = 64
PHASES = ("data", "augment", "forward", "backward", "reduce", "optimizer", "checkpoint", "observe")


class PhaseClock:
    """Cumulative seconds by phase.

    Args:
        seconds: Counted up in place, so that a run's seconds go on over its rounds.

    Attributes:
        entered: The phase this is in, and when it began (`time.perf_counter()`); None between two.
        recent: Seconds of the last times in each phase.
        pace: How long the rank works in a step.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = {} if seconds is None else seconds
        for phase in PHASES:
            self.seconds.setdefault(phase, 0.0)
        self.entered: tuple[str, float] | None = None
        self.recent: dict[str, deque[float]] = {phase: deque(maxlen=_RECENT) for phase in PHASES}
        self.pace = Pace()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        self.entered = (phase, start)
        try:
            yield
        finally:
            self.entered = None
            seconds = time.perf_counter() - start
            self.seconds[phase] += seconds
            self.recent[phase].append(seconds)
