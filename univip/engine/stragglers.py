"""Names the rank that is slower than the others step after step: they all wait for it.

A single slow step says nothing (a photograph that is large, a disk that is busy), so each rank stands for
itself with the median of its last steps, beside the median of those of the others: of two ranks, the other.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

WINDOW = 15  # data steps: seven of them may be anything
# A rank that is slower by half is to be named through the noise of a median.
LIMIT = 1.4  # times the others
STEPS = 5  # in a row above the limit, before it is named
_CALM = 1.2  # times the others: below it, the next time is another one


class Slowest(NamedTuple):
    """The slowest rank of the last steps, and how many times as long as the others it works."""

    rank: int
    ratio: float


class Stragglers:
    """What is known of the pace of all ranks.

    Args:
        images: Of each rank in a step.
    """

    def __init__(self, images: Sequence[int]) -> None:
        # Work grows with the images of a rank, but part of it is the same for any number. A rank is slow only
        # if it is so by either measure.
        self._measures = [[1.0] * len(images), [min(images) / each if each else 1.0 for each in images]]
        self._recent: list[deque[float]] = [deque(maxlen=WINDOW) for _ in images]
        self._in_a_row = 0
        self._named: set[int] = set()
        self.slowest: Slowest | None = None

    def sees(self, seconds: Sequence[float]) -> Slowest | None:
        """Take the seconds of own work of each rank in one step; the slowest rank, if it is to be named now.

        Each is named once, until all have kept up with each other again.
        """
        for recent, each in zip(self._recent, seconds, strict=True):
            recent.append(each)
        if len(seconds) < 2 or len(self._recent[0]) < WINDOW:
            return None
        medians = [statistics.median(recent) for recent in self._recent]
        before, ranks = self.slowest, range(len(medians))
        found = max(
            (Slowest(rank, self._ratio(medians, rank)) for rank in ranks), key=lambda each: each.ratio
        )
        if found.ratio < _CALM:
            self._named.clear()
        is_same = before is not None and before.rank == found.rank
        self._in_a_row = 0 if found.ratio <= LIMIT else self._in_a_row + 1 if is_same else 1
        self.slowest = found
        if self._in_a_row < STEPS or found.rank in self._named:
            return None
        self._named.add(found.rank)
        return found

    def _ratio(self, medians: list[float], rank: int) -> float:
        ratios = []
        for shares in self._measures:
            scaled = [median * share for median, share in zip(medians, shares, strict=True)]
            others = statistics.median(scaled[:rank] + scaled[rank + 1 :])
            ratios.append(scaled[rank] / others if others > 0 else 1.0)
        return min(ratios)
