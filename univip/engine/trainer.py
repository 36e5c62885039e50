r"""The trainer: a state machine from the last good checkpoint to the target.

    RESTORE -> STEP -> SETTLE -> STEP ... -> FINISH -> (done)
                 \-> ROLL_BACK -> STEP         \-> STOP -> (requeue)

Every handler returns the next phase. Positions are data steps; decisions go to the ledger before they are
carried out; rank 0 decides and writes, the others follow its broadcasts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import torch

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Found, Origin
from univip.config import CheckpointConfig, ResilienceConfig
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.probation import Probation
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepReport, StepSettings, train_step
from univip.errors import CheckpointError, RollbackExhaustedError
from univip.observe import Observer
from univip.resilience.guard import Judgement, Verdict
from univip.resilience.ledger import Ledger
from univip.types import Views


class Phase(Enum):
    """What the trainer does next."""

    RESTORE = auto()
    STEP = auto()
    SETTLE = auto()
    ROLL_BACK = auto()
    STOP = auto()
    FINISH = auto()
    END = auto()


class Ending(Enum):
    """How a round of training ended, short of an error."""

    DONE = auto()
    STOPPED = auto()


@dataclass(frozen=True)
class Loaded:
    """This rank's share of one data step, ready to be augmented."""

    data_step: int
    micro_batches: Sequence[Callable[[], Views]]
    counts: dict[str, int]
    failures: Sequence[dict[str, object]] = ()


class Batches(Protocol):
    """Where batches come from; closing the generator stops its workers."""

    def __call__(self, data_steps: Iterable[int]) -> Generator[Loaded, None, None]:
        """This rank's share of each data step, in order."""
        ...


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


class Trainer:
    """Drives one round of training on one rank."""

    def __init__(
        self,
        state: TrainState,
        plan: Plan,
        batches: Batches,
        settings: StepSettings,
        *,
        group: Group,
        manager: CheckpointManager,
        ledger: Ledger,
        checkpoint: CheckpointConfig,
        resilience: ResilienceConfig,
        observer: Observer,
        stop_requested: Callable[[], bool],
        origin: Origin,
        totals: Totals,
    ) -> None:
        self.state = state
        self.plan = plan
        self.batches = batches
        self.settings = settings
        self.group = group
        self.manager = manager
        self.ledger = ledger
        self.checkpoint = checkpoint
        self.resilience = resilience
        self.observer = observer
        self.stop_requested = stop_requested
        self.origin = origin
        self.totals = totals
        self.clock = PhaseClock(totals.phases)
        self.probation = Probation(manager, ledger, observer, good_steps=resilience.healthy_after_steps)
        self._buffer = GradientBuffer(state.method.online)
        self._stream: Generator[Loaded, None, None] | None = None
        self._report: StepReport | None = None
        self._bad_step = 0  # data step of the verdict ROLLBACK
        self._skipped: set[int] = set()  # data steps that an earlier pass skipped and no rollback jumps over
        self._since_record: list[StepReport] = []
        self._ending = Ending.DONE

    def run(self) -> Ending:
        """Train to the target.

        Raises:
            RollbackExhaustedError: If the budget is spent.
            CheckpointError: If there is nothing good to resume from, or the last checkpoint cannot be
                written.
        """
        handlers = {
            Phase.RESTORE: self._restore,
            Phase.STEP: self._step,
            Phase.SETTLE: self._settle,
            Phase.ROLL_BACK: self._roll_back,
            Phase.STOP: self._stop,
            Phase.FINISH: self._finish,
        }
        phase = Phase.RESTORE
        try:
            while phase is not Phase.END:
                phase = handlers[phase]()
        finally:
            self._close_stream()
            self.manager.wait()
        return self._ending

    # --- phases
    # -------------------------------------------------------------------------------------------------

    def _restore(self) -> Phase:
        start = time.perf_counter()
        found = self.group.broadcast(self._find_start() if self.group.is_main else None)
        if found is None:
            if self.group.is_main:
                self._save(wait=True)
            self.group.broadcast(None)  # it is written
            # Of rank 0 for all: one seed need not give the same bits on every kind of processor.
            self.manager.load(0, self.state)
        else:
            self.manager.load(found["data_step"], self.state)
            self.observer.record(
                "restore",
                step=self.state.step,
                data_step=self.state.data_step,
                checkpoint=layout.name_of(found["data_step"]),
                seconds=time.perf_counter() - start,
                passed_over=found["passed_over"],
            )
            if self.group.is_main:
                self.probation.resume(self.state.step)
        if self.group.is_main and self.state.data_step == 0:
            # Nothing has been computed yet, so there is nothing to wait for: a rollback always has a target.
            self.probation.end(0)
        self._open_stream(self.group.broadcast(self._jumped() if self.group.is_main else None))
        return Phase.STEP

    def _step(self) -> Phase:
        assert self._stream is not None
        start = time.perf_counter()
        with self.clock("data"):
            loaded = next(self._stream, None)
        if loaded is None:
            return Phase.FINISH
        # Skips that an earlier round decided are in a row with those that follow.
        jumped = range(self.state.data_step, loaded.data_step)
        self.state.guard.consecutive_skips += len(self._skipped.intersection(jumped))
        self.state.data_step = loaded.data_step
        for failure in loaded.failures:
            self.observer.record("image_failed", **failure)
        report = train_step(
            self.state,
            loaded.micro_batches,
            settings=self.settings,
            group=self.group,
            buffer=self._buffer,
            learning_rate=self.plan.learning_rate(loaded.data_step),
            momentum=self.plan.momentum(loaded.data_step),
            counts=loaded.counts,
            stop_requested=self.stop_requested(),
            clock=self.clock,
        )
        self._report = report
        self._count(report, time.perf_counter() - start)
        if report.judgement.verdict is Verdict.rollback:
            self._bad_step = loaded.data_step
            return Phase.ROLL_BACK
        if report.judgement.verdict is Verdict.skip and self.group.is_main:
            why = _why(report)
            self.ledger.append("skip", data_step=loaded.data_step, **why)
            self.observer.record("skip", step=self.state.step, data_step=loaded.data_step, **why)
        self.state.data_step = loaded.data_step + 1
        return Phase.SETTLE

    def _settle(self) -> Phase:
        """What follows a step: records, probation, checkpoint, and whether to go on."""
        report = self._report
        assert report is not None
        done = self.state.data_step
        with self.clock("observe"):
            self._since_record.append(report)
            if done % self.plan.every_steps == 0 or done >= self.plan.target:
                self._record_step()
        if self.group.is_main:
            if report.judgement.verdict is Verdict.ok:
                self.probation.advance()
            if done % self.checkpoint.every_steps == 0 and done < self.plan.target:
                self._save()
        if report.stop_requested and done < self.plan.target:
            return Phase.STOP
        return Phase.STEP

    def _roll_back(self) -> Phase:
        start = time.perf_counter()
        self._close_stream()
        decision = self.group.broadcast(self._decide_rollback() if self.group.is_main else None)
        if decision["exhausted"]:
            raise RollbackExhaustedError(
                f"the state went bad {decision['rollbacks'] + 1} times, and "
                f"{decision['rollbacks']} rollbacks are allowed",
                where=f"data step {self._bad_step}",
                fix="read the `rollback` records of ledger.jsonl; to go on, submit the same request with "
                f"resilience.max_rollbacks={2 * decision['rollbacks'] + 1}",
            )
        self.manager.load(decision["target"], self.state)
        self.probation.clear()
        self._since_record.clear()
        self.observer.record(
            "restore",
            step=self.state.step,
            data_step=self.state.data_step,
            checkpoint=layout.name_of(decision["target"]),
            seconds=time.perf_counter() - start,
            passed_over={},
        )
        self._open_stream(decision["jumped"])
        return Phase.STEP

    def _stop(self) -> Phase:
        self._save_last()
        self._ending = Ending.STOPPED
        return Phase.END

    def _finish(self) -> Phase:
        if self._is_damaged():
            return Phase.ROLL_BACK
        self.state.data_step = self.plan.target
        self._save_last()
        return Phase.END

    # --- what rank 0 decides
    # --------------------------------------------------------------------------------------

    def _find_start(self) -> dict[str, Any] | None:
        """Carry out what the ledger decided before this start, then find the newest good checkpoint."""
        self.manager.clear_temporary()
        self._carry_out_rollbacks()
        found: Found | None = self.manager.newest_good()
        if found is None:
            return None
        self.manager.abandon(list(found.passed_over), "damaged")
        passed_over = {layout.name_of(step): why for step, why in found.passed_over.items()}
        return {"data_step": found.data_step, "passed_over": passed_over}

    def _carry_out_rollbacks(self) -> None:
        lines = {data_step: manifest.line for data_step, manifest in self.manager.manifests().items()}
        decisions = self.ledger.decisions()
        self.manager.abandon(decisions.abandoned(lines), f"rollback-{decisions.line:03d}")

    def _decide_rollback(self) -> dict[str, Any]:
        """Choose where to go back to and what to jump over; in the ledger before anything is touched."""
        report = self._report
        assert report is not None
        if not self.manager.still_owner():
            raise CheckpointError(
                "a newer attempt owns this run; this one decides nothing more",
                where=str(self.manager.directory),
            )
        self.manager.wait()
        self.probation.settle()
        rollbacks = self.ledger.decisions().line
        if rollbacks >= self.resilience.max_rollbacks:
            self.ledger.append("exhausted", at=self._bad_step, rollbacks=rollbacks)
            return {"exhausted": True, "rollbacks": rollbacks}
        found = self.manager.newest_good(healthy_only=True, at_most=self._bad_step)
        if found is None:
            raise CheckpointError(
                "there is no healthy checkpoint to return to",
                where=str(self.manager.directory),
                fix="start a new run with another `train.seed=`",
            )
        stop = self._bad_step + 1
        window = [max(found.data_step, stop - self.resilience.skip_window_steps), stop]
        why = _why(report)
        self.ledger.append("rollback", target=found.data_step, at=self._bad_step, window=window, **why)
        newer = [step for step in layout.data_steps(self.manager.directory) if step > found.data_step]
        self.manager.abandon(newer, f"rollback-{rollbacks + 1:03d}")
        self.origin = Origin(
            self.origin.world_size, self.origin.config_hash, rollbacks + 1, self.origin.versions
        )
        self.observer.record(
            "rollback",
            step=self.state.step,
            data_step=self._bad_step,
            target=found.data_step,
            window_start=window[0],
            window_stop=window[1],
            steps_discarded=self._bad_step - found.data_step,
            abandoned=len(newer),
            **why,
        )
        return {"exhausted": False, "target": found.data_step, "jumped": self._jumped()}

    def _jumped(self) -> dict[str, list[int]]:
        """Data steps that the ledger says not to train on, by decision."""
        decisions = self.ledger.decisions()
        windows, skipped = decisions.windows, decisions.skipped - decisions.windows
        return {"windows": sorted(windows), "skipped": sorted(skipped)}

    # --- small acts
    # -----------------------------------------------------------------------------------------------

    def _open_stream(self, jumped: dict[str, list[int]]) -> None:
        self._skipped = set(jumped["skipped"])
        ahead = range(self.state.data_step, self.plan.target)
        without = self._skipped.union(jumped["windows"])
        self._stream = self.batches(data_step for data_step in ahead if data_step not in without)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _is_damaged(self) -> bool:
        """Whether the last update, which no step has looked at since, left a value that is not finite."""
        if self._report is None:  # nothing was done in this round
            return False
        bad = (~self.state.is_finite()).to(torch.float32).view(1)
        self.group.sum_(bad)
        if not bool(bad):
            return False
        self._bad_step = self.state.data_step - 1
        what = "a parameter, buffer or optimizer value is not finite"
        judgement = Judgement(Verdict.rollback, "state", "nonfinite", what)
        self._report = self._report._replace(judgement=judgement)
        return True

    def _save(self, *, wait: bool = False) -> None:
        with self.clock("checkpoint"):
            self.manager.wait()
            self.probation.settle()  # also where every step saves, and a write is always under way
            self.manager.save(self.state, self.origin, wait=wait)
        self.probation.add(self.state.data_step)

    def _save_last(self) -> None:
        """The checkpoint that the next round or the user goes on from; without it this round has failed."""
        if self.group.is_main:
            self.manager.wait()
            if self.manager.latest() != self.state.data_step:
                self._save(wait=True)

    def _count(self, report: StepReport, seconds: float) -> None:
        self.totals.seconds += seconds
        self.totals.images += self.plan.global_batch
        if report.judgement.verdict is Verdict.ok:
            self.totals.steps += 1
        for name, value in report.counts.items():
            self.totals.counts[name] = self.totals.counts.get(name, 0.0) + value

    def _record_step(self) -> None:
        """One `step` record: the last step, and the extremes since the record before."""
        reports, self._since_record = self._since_record, []
        if not self.group.is_main:
            return
        last = reports[-1]
        data_step = self.state.data_step - 1
        self.observer.record(
            "step",
            step=self.state.step,
            data_step=self.state.data_step,
            loss=last.loss,
            loss_min=_least([report.loss for report in reports]),
            loss_max=_greatest([report.loss for report in reports]),
            terms=last.terms,
            lr=self.plan.learning_rate(data_step),
            momentum=self.plan.momentum(data_step),
            gradient_norm=last.gradient_norm,
            gradient_norm_min=_least([report.gradient_norm for report in reports]),
            gradient_norm_max=_greatest([report.gradient_norm for report in reports]),
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
            checkpoint_step=self.manager.last_success[0],
            checkpoint_time=self.manager.last_success[1],
        )


def _why(report: StepReport) -> dict[str, str]:
    """The reason of a verdict, as ledger and journal record it."""
    judgement = report.judgement
    return {"where": judgement.where, "reason": judgement.reason, "what": judgement.what}


def _least(values: list[float]) -> float:
    """The minimum; NaN if any value is, so that one bad step never vanishes between two records."""
    return math.nan if any(math.isnan(value) for value in values) else min(values)


def _greatest(values: list[float]) -> float:
    """The maximum; NaN if any value is."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
