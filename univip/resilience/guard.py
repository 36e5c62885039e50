"""The guard: one verdict per step, the same on every rank, before anything sees a bad value.

Optimizer, target network and checkpoint come after it. Its input is reduced over the ranks together with the
gradients, so all ranks judge the same numbers.

A value that is not finite is never applied. A spike, a finite loss or gradient norm far above the usual, is:
one alone is most often an odd batch, and is only recorded. Spikes in a row mean that the state itself has
left the good path.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from univip.config import ResilienceConfig
from univip.errors import CheckpointError
from univip.resilience.spikes import SpikeDetector

# A loss half as high again, and a gradient four times as long, as is usual: less is a slope of training, such
# as the end of a plateau, and not worth going back for. Losses are bounded and gradient norms heavy-tailed.
LOSS_RISE = 0.5
GRADIENT_RISE = 3.0


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
    reason: str = ""  # nonfinite | repeated_skips | spike | replicas_differ; with OK only spike
    what: str = ""  # in words
    steps_before: int = 0  # bad data steps right before this one that were applied

    @property
    def is_good(self) -> bool:
        """Whether nothing at all was unusual: only such steps prove a checkpoint."""
        return self.verdict is Verdict.ok and not self.reason


class Guard:
    """Judges steps in order.

    Attributes:
        consecutive_skips: Not finite, in a row.
        consecutive_spikes: In a row; a skipped step in between neither counts nor breaks the row.
        good_steps: Of the whole way to this state.
    """

    def __init__(self, limits: ResilienceConfig) -> None:
        self.limits = limits
        self.consecutive_skips = 0
        self.consecutive_spikes = 0
        self.good_steps = 0
        self._detectors = {
            name: SpikeDetector(limits.spike_window, threshold=limits.spike_threshold, min_rise=rise)
            for name, rise in (("loss", LOSS_RISE), ("gradient", GRADIENT_RISE))
        }

    @property
    def usual_gradient_norm(self) -> float | None:
        """Median of the window; None before the first applied step."""
        return self._detectors["gradient"].usual

    def judge(self, health: Health, *, loss: float, gradient_norm: float) -> Judgement:
        """Decide about one step; its numbers count only where all values are finite."""
        if health.state:
            what = "a parameter, buffer or optimizer value is not finite"
            return Judgement(Verdict.rollback, "state", "nonfinite", what)
        where = "loss" if health.loss else "gradient" if health.gradient else ""
        if where:
            return self._skip(where)
        self.consecutive_skips = 0
        return self._apply({"loss": loss, "gradient": gradient_norm})

    def _skip(self, where: str) -> Judgement:
        self.consecutive_skips += 1
        if self.consecutive_skips > self.limits.max_consecutive_skips:
            skips, self.consecutive_skips = self.consecutive_skips, 0
            return Judgement(Verdict.rollback, where, "repeated_skips", f"{skips} bad steps in a row")
        return Judgement(Verdict.skip, where, "nonfinite", f"the {where} is not finite")

    def _apply(self, values: dict[str, float]) -> Judgement:
        limits = {name: self._detectors[name].limit for name in values}
        spikes = [name for name, limit in limits.items() if limit is not None and values[name] > limit]
        judgement = Judgement(Verdict.ok)
        if spikes:
            where, before = spikes[0], self.consecutive_spikes
            usual = self._detectors[where].usual
            what = f"{_WORDS[where]} {values[where]:.4g}, usual {usual:.4g}, limit {limits[where]:.4g}"
            if before + 1 >= self.limits.max_consecutive_spikes:
                what = f"{before + 1} spikes in a row; the last: {what}"
                return Judgement(Verdict.rollback, where, "spike", what, before)
            judgement = Judgement(Verdict.ok, where, "spike", what)
            self.consecutive_spikes += 1
        else:
            self.consecutive_spikes = 0
            self.good_steps += 1
        for name, value in values.items():
            self._detectors[name].add(value)
        return judgement

    # --- as part of the training state
    # --------------------------------------------------------------------------------

    def facts(self) -> dict[str, object]:
        """Everything the next verdict depends on, as JSON values."""
        return {
            "consecutive_skips": self.consecutive_skips,
            "consecutive_spikes": self.consecutive_spikes,
            "good_steps": self.good_steps,
            **{name: detector.values for name, detector in self._detectors.items()},
        }

    def load(self, facts: object) -> None:
        """Become the guard that was saved.

        Raises:
            CheckpointError: If these are not the facts of a guard; nothing is changed then.
        """
        expected = self.facts()
        if not isinstance(facts, dict) or set(facts) != set(expected):
            raise CheckpointError(f"`guard` of the manifest must hold {', '.join(expected)}")
        for name, detector in self._detectors.items():
            detector.values = facts[name]
        self.consecutive_skips = facts["consecutive_skips"]
        self.consecutive_spikes = facts["consecutive_spikes"]
        self.good_steps = facts["good_steps"]


_WORDS = {"loss": "the loss is", "gradient": "the gradient norm is"}
