"""The guard: one verdict per step, the same on every rank, before anything sees a bad value.

Optimizer, target network and checkpoint come after it. Its input is reduced over the ranks together with the
gradients, so all ranks judge the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What happens to the step, and to the run."""

    ok = "ok"  # apply it
    skip = "skip"  # the batch changes nothing
    rollback = "rollback"  # the state may be damaged: return to a healthy checkpoint


class Health(NamedTuple):
    """Where a non-finite value was seen; each True if any rank saw one."""

    state: bool  # parameters, buffers, optimizer or target, before this step
    loss: bool
    gradient: bool


class Judgement(NamedTuple):
    """A verdict with its reason; `where` and `reason` are metric labels of few values."""

    verdict: Verdict
    where: str = ""  # state | loss | gradient
    reason: str = ""  # nonfinite | repeated_skips
    what: str = ""  # in words


@dataclass
class Guard:
    """Judges steps in order.

    Attributes:
        max_consecutive_skips: Then the state itself is suspected.
        consecutive_skips: Part of the training state.
    """

    max_consecutive_skips: int
    consecutive_skips: int = 0

    def judge(self, health: Health) -> Judgement:
        """Decide about one step."""
        if health.state:
            self.consecutive_skips = 0
            what = "a parameter, buffer or optimizer value is not finite"
            return Judgement(Verdict.rollback, "state", "nonfinite", what)
        where = "loss" if health.loss else "gradient" if health.gradient else ""
        if not where:
            self.consecutive_skips = 0
            return Judgement(Verdict.ok)
        self.consecutive_skips += 1
        if self.consecutive_skips > self.max_consecutive_skips:
            skips = self.consecutive_skips
            self.consecutive_skips = 0
            return Judgement(Verdict.rollback, where, "repeated_skips", f"{skips} bad steps in a row")
        return Judgement(Verdict.skip, where, "nonfinite", f"the {where} is not finite")
