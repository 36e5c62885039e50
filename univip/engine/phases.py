"""Where the seconds of a step go, by host clock.

On a GPU the phases measure when the host was busy or waiting; work queued in `forward` may be paid for in the
phase that reads a result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("data", "augment", "forward", "backward", "reduce", "optimizer", "checkpoint", "observe")


class PhaseClock:
    """Cumulative seconds by phase.

    Args:
        seconds: Counted up in place, so that a run's seconds go on over its rounds.
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds = {} if seconds is None else seconds
        for phase in PHASES:
            self.seconds.setdefault(phase, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start
