"""What rank 0 tells the observer about the steps it sees: progress, spikes, collapse, stragglers.

Nothing here decides anything, so nothing here is part of the training state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from univip.config import ResilienceConfig
from univip.engine.step import StepReport
from univip.engine.stragglers import Stragglers
from univip.observe import Observer
from univip.resilience.guard import Verdict


@dataclass
class Totals:
    """Counters for people, cumulative over the run: recomputed work counts again, so they never go back."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)  # seconds


@dataclass(frozen=True)
class Plan:
    """Where the run goes and how fast it learns on the way.

    Attributes:
        target: Data steps of the whole run.
        learning_rate: Of a data step.
        momentum: Of the target network at a data step.
    """

    target: int
    learning_rate: Callable[[int], float]
    momentum: Callable[[int], float]
    global_batch: int
    micro_batches: int
    every_steps: int  # data steps between two `step` records


class Reporter:
    """Counts steps on every rank; records them on the one that has an observer to tell.

    Args:
        plan: Of the run.
        totals: Counted up in place.
        observer: None on ranks other than 0.
        limits: When a collapse is worth a warning.
        images: Of each rank in a step.
    """

    def __init__(
        self,
        plan: Plan,
        totals: Totals,
        observer: Observer | None,
        *,
        limits: ResilienceConfig,
        images: Sequence[int],
    ) -> None:
        self.plan = plan
        self.totals = totals
        self.observer = observer
        self._since_record: list[StepReport] = []
        self._collapse = CollapseWatch(limits.collapse_std, limits.collapse_after_steps)
        self._stragglers = Stragglers(images)

    def count(self, report: StepReport, seconds: float) -> None:
        """Count one step, whatever became of it."""
        self.totals.seconds += seconds
        self.totals.images += self.plan.global_batch
        if report.judgement.verdict is Verdict.ok:
            self.totals.steps += 1
        for name, value in report.counts.items():
            self.totals.counts[name] = self.totals.counts.get(name, 0.0) + value

    def settle(self, report: StepReport, step: int, done: int, checkpoint: tuple[int, float]) -> None:
        """Record what there is to say about a step that no rollback takes back.

        Args:
            report: Of the step.
            step: Optimizer steps applied so far.
            done: Data steps done so far.
            checkpoint: Data step and Unix time of the last durable checkpoint.
        """
        self._since_record.append(report)
        is_due = done % self.plan.every_steps == 0 or done >= self.plan.target
        reports = self._since_record
        if is_due:
            self._since_record = []
        if self.observer is None:
            return
        judgement = report.judgement
        if judgement.reason == "spike":
            where, what = judgement.where, judgement.what
            self.observer.record("spike", step=step, data_step=done - 1, where=where, what=what)
        std = report.statistics.get("embedding_std_online")
        if std is not None and self._collapse.sees(std):
            self.observer.record("collapse", step=step, data_step=done - 1, embedding_std=round(std, 4))
        if any(report.paces) and (slowest := self._stragglers.sees(report.paces)):
            ratio = round(slowest.ratio, 2)
            self.observer.record(
                "straggler", step=step, data_step=done - 1, slowest=slowest.rank, ratio=ratio
            )
        if is_due:
            self._record(self.observer, reports, step, done, checkpoint)

    def forget(self) -> None:
        """A rollback took the steps back that are not recorded yet."""
        self._since_record.clear()

    def _record(
        self, observer: Observer, reports: list[StepReport], step: int, done: int, at: tuple[int, float]
    ) -> None:
        """One `step` record: the last step, and the extremes since the record before."""
        last, slowest = reports[-1], self._stragglers.slowest
        observer.record(
            "step",
            step=step,
            data_step=done,
            loss=last.loss,
            loss_min=_least([report.loss for report in reports]),
            loss_max=_greatest([report.loss for report in reports]),
            terms=last.terms,
            lr=self.plan.learning_rate(done - 1),
            momentum=self.plan.momentum(done - 1),
            gradient_norm=last.gradient_norm,
            gradient_norm_min=_least([report.gradient_norm for report in reports]),
            gradient_norm_max=_greatest([report.gradient_norm for report in reports]),
            calm=last.calm,
            images=self.totals.images,
            steps=self.totals.steps,
            seconds=self.totals.seconds,
            phases=self.totals.phases,
            statistics=last.statistics,
            counts=self.totals.counts,
            target=self.plan.target,
            micro_batches=self.plan.micro_batches,
            # BatchNorm statistics are those of one micro-batch over all ranks.
            batch_norm_count=self.plan.global_batch / self.plan.micro_batches,
            slowest_rank=slowest and slowest.rank,
            straggler_ratio=slowest and slowest.ratio,
            checkpoint_step=at[0],
            checkpoint_time=at[1],
        )


class CollapseWatch:
    """Notices when the embeddings stay near one point; once per stretch.

    Args:
        limit: Spread below which they are.
        after_steps: How many steps in a row.
    """

    def __init__(self, limit: float, after_steps: int) -> None:
        self.limit = limit
        self.after_steps = after_steps
        self._steps = 0

    def sees(self, std: float) -> bool:
        """Take the spread of one step; True at the step that makes the stretch long enough."""
        self._steps = self._steps + 1 if std < self.limit else 0
        return self._steps == self.after_steps


def _least(values: list[float]) -> float:
    """The minimum; NaN if any value is, so that one bad step never vanishes between two records."""
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def _greatest(values: list[float]) -> float:
    """The maximum; NaN if any value is."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
