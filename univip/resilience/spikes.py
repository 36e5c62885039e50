"""When a number of a step is far above what is usual: median and median deviation of the last values.

Both hold still while fewer than half of the window is unusual, so a spike cannot hide itself by widening the
spread, as it would with mean and standard deviation. What enters the window is up to the caller: a value that
is not finite never may. The window is part of the training state, so that a resumed run judges alike.
"""

from __future__ import annotations

import statistics
from collections import deque

NORMAL = 1.4826  # median deviation of a normal distribution, inverted


class SpikeDetector:
    """The last values of one number.

    Args:
        window: How many; before there are as many nothing is a spike, which leaves out a run's first steps.
        threshold: Standard deviations above the median, as the median deviation estimates them.
        min_rise: And at least this share of the median above it: where values hardly vary, as on a plateau,
            the spread alone would call every slow climb a spike.
    """

    def __init__(self, window: int, *, threshold: float, min_rise: float) -> None:
        self.threshold = threshold
        self.min_rise = min_rise
        self._values: deque[float] = deque(maxlen=window)

    @property
    def values(self) -> list[float]:
        """The window, oldest value first."""
        return list(self._values)

    @values.setter
    def values(self, values: list[float]) -> None:
        self._values.clear()
        self._values.extend(values)

    @property
    def usual(self) -> float | None:
        """The median; None where there is no value yet."""
        return statistics.median(self._values) if self._values else None

    @property
    def limit(self) -> float | None:
        """What a value must exceed to be a spike; None while the window is not full."""
        if len(self._values) < (self._values.maxlen or 0):
            return None
        median = statistics.median(self._values)
        deviation = NORMAL * statistics.median(abs(value - median) for value in self._values)
        return median + max(self.threshold * deviation, self.min_rise * abs(median))

    def add(self, value: float) -> None:
        """Take a finite value into the window; the oldest leaves."""
        self._values.append(value)
