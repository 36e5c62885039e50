r"""The trainer: a state machine from the last good checkpoint to the target.

    RESTORE -> STEP -> SETTLE -> STEP ... -> FINISH -> (done)
                 \-> ROLL_BACK -> STEP         \-> STOP -> (requeue)

Every handler returns the next phase. Positions are data steps; decisions go to the ledger before they are
carried out; rank 0 decides and writes, the others follow its broadcasts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Protocol

import torch

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.config import CheckpointConfig, ResilienceConfig
from univip.data.plan import slices
from univip.engine.cadence import Cadence
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.probation import Probation
from univip.engine.recovery import Course, Exhausted, Recovery, reason_of
from univip.engine.reporting import Plan, Reporter, Totals
from univip.engine.sample_log import Marks, SampleLog
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepReport, StepSettings, train_step
from univip.errors import RollbackExhaustedError
from univip.observe import Observer
from univip.resilience.anomaly import Capsules
from univip.resilience.guard import Judgement, Verdict
from univip.resilience.ledger import Ledger
from univip.resilience.replicas import ReplicaCheck
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
    marks: Marks  # of this rank's samples
    image_ids: Sequence[int] = ()
    epochs: Sequence[int] = ()
    failures: Sequence[dict[str, object]] = ()


class Batches(Protocol):
    """Where batches come from; closing the generator stops its workers."""

    def __call__(self, data_steps: Iterable[int]) -> Generator[Loaded, None, None]:
        """This rank's share of each data step, in order."""
        ...


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
        samples: SampleLog,
        checkpoint: CheckpointConfig,
        resilience: ResilienceConfig,
        observer: Observer,
        stop_requested: Callable[[], bool],
        origin: Origin,
        totals: Totals,
        capsules: Capsules,
    ) -> None:
        self.state = state
        self.plan = plan
        self.batches = batches
        self.settings = settings
        self.group = group
        self.manager = manager
        self.ledger = ledger
        self.samples = samples
        self.observer = observer
        self.stop_requested = stop_requested
        self.origin = origin
        self.capsules = capsules
        self.clock = PhaseClock(totals.phases)
        self.reporter = Reporter(
            plan,
            totals,
            observer if group.is_main else None,
            limits=resilience,
            images=[stop - start for start, stop in slices(plan.global_batch, group.size)],
        )
        self.probation = Probation(manager, ledger, observer, good_steps=resilience.healthy_after_steps)
        self.recovery = Recovery(manager, ledger, self.probation, resilience, observer)
        self.cadence = Cadence(checkpoint, group, manager, ledger, observer)
        self._replicas = ReplicaCheck(group, every_steps=resilience.replica_check_every)
        self._buffer = GradientBuffer(state.method.online)
        self._stream: Generator[Loaded, None, None] | None = None
        self._loaded: Loaded | None = None
        self._report: StepReport | None = None
        self._bad_step = 0  # data step of the verdict ROLLBACK
        self._course = Course()
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
        start_from = self.recovery.find_start() if self.group.is_main else None
        found = self.group.broadcast(start_from and start_from.data_step)
        if found is None:
            if self.group.is_main:
                self._save(wait=True)
            self.group.broadcast(None)  # it is written
            # Of rank 0 for all: one seed need not give the same bits on every kind of processor.
            self.manager.load(0, self.state)
        else:
            self._load(found, start, start_from.passed_over if start_from else {})
            if self.group.is_main:
                self.probation.resume(self.state.guard.good_steps)
        if self.group.is_main and self.state.data_step == 0:
            # Nothing has been computed yet, so there is nothing to wait for: a rollback always has a target.
            self.probation.end(0)
        self._open_stream()
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
        self.state.guard.consecutive_skips += len(set(self._course.skipped).intersection(jumped))
        self._loaded = loaded
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
            marks=loaded.marks,
            stop_requested=self.stop_requested(),
            clock=self.clock,
            calm=self._course.is_calm(loaded.data_step),
        )
        self._report = report
        self.reporter.count(report, time.perf_counter() - start)
        if report.judgement.verdict is not Verdict.ok:
            self._capture(loaded.data_step)
        if report.judgement.verdict is Verdict.rollback:
            self._bad_step = loaded.data_step
            return Phase.ROLL_BACK
        if report.judgement.verdict is Verdict.skip and self.group.is_main:
            why = reason_of(report.judgement)
            self.ledger.append("skip", data_step=loaded.data_step, **why)
            self.observer.record("skip", step=self.state.step, data_step=loaded.data_step, **why)
        if report.judgement.verdict is Verdict.ok:
            self.samples.add(loaded.data_step, report.marks)
        self.state.data_step = loaded.data_step + 1
        return Phase.SETTLE

    def _settle(self) -> Phase:
        """What follows a step: replicas, records, probation, checkpoint, and whether to go on."""
        report = self._report
        assert report is not None
        done = self.state.data_step
        is_saving = self.cadence.is_due(done) and done < self.plan.target
        # Before every checkpoint, so that none can hold the damage of the rank that writes it.
        is_due = is_saving or report.stop_requested or self._replicas.is_due(self.state.step)
        if is_due and self._do_replicas_differ():
            return Phase.ROLL_BACK
        with self.clock("observe"):
            self.reporter.settle(report, self.state.step, done, self.manager.last_success)
        if self.group.is_main:
            if report.judgement.is_good:
                self.probation.advance()
            if is_saving:
                self._save()
        if report.stop_requested and done < self.plan.target:
            return Phase.STOP
        return Phase.STEP

    def _roll_back(self) -> Phase:
        start = time.perf_counter()
        self._close_stream()
        decision = self.group.broadcast(self._decide() if self.group.is_main else None)
        if "option" in decision:
            budget = 2 * decision["rollbacks"] + 1
            raise RollbackExhaustedError(
                f"the state went bad {decision['rollbacks'] + 1} times, and the budget of rollbacks is spent",
                where=f"data step {self._bad_step}: {decision['what']}",
                fix="read the `rollback` records of ledger.jsonl; to go on, submit the same request with "
                f"{decision['option']}={budget}",
            )
        self._load(decision["target"], start, {}, in_memory=decision["in_memory"])
        self.origin = replace(self.origin, line=decision["line"])
        self.probation.clear()
        self.reporter.forget()
        self._open_stream()
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

    # --- small acts
    # -----------------------------------------------------------------------------------------------

    def _load(
        self, data_step: int, start: float, passed_over: dict[int, str], *, in_memory: bool = False
    ) -> None:
        """Take the state of a checkpoint; `start` is when looking for it began."""
        if in_memory:
            self._take_from_memory()
        else:
            self.manager.load(data_step, self.state)
        self.settings.faults.happened.clear()
        self.observer.record(
            "restore",
            step=self.state.step,
            data_step=self.state.data_step,
            checkpoint=layout.name_of(data_step),
            source="memory" if in_memory else "disk",
            seconds=time.perf_counter() - start,
            passed_over={layout.name_of(each): why for each, why in passed_over.items()},
        )

    def _take_from_memory(self) -> None:
        """Take the state that rank 0 holds.

        Rank 0 alone has made and checked a copy, and sends it: a copy on every rank would take their number
        times the memory of a node, and every one of them would be another that may be wrong.
        """
        if self.group.is_main:
            assert self.manager.held is not None
            self.state.load(self.manager.held.tensors, self.manager.held.manifest.facts)
        facts = self.group.broadcast(self.state.facts())
        tensors = self.group.broadcast_tensors(self.state.tensors())
        if not self.group.is_main:
            self.state.load(tensors, facts)

    def _decide(self) -> dict[str, Any]:
        """Rank 0's decision about a rollback, as it is broadcast."""
        report = self._report
        assert report is not None
        decided = self.recovery.roll_back(self._bad_step, self.state.step, report.judgement)
        if isinstance(decided, Exhausted):
            return {**decided._asdict(), "what": report.judgement.what}
        return decided._asdict()

    def _open_stream(self) -> None:
        """Go on from here, as the ledger says."""
        if self.group.is_main:
            self.samples.start(self.state.data_step)
        self._course = Course(**self.group.broadcast(self.recovery.course() if self.group.is_main else None))
        self.cadence.begin()
        ahead = range(self.state.data_step, self.plan.target)
        without = {*self._course.skipped, *self._course.windows}
        self._stream = self.batches(data_step for data_step in ahead if data_step not in without)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _is_damaged(self) -> bool:
        """Whether the last update, which no step has looked at since, left a value that is not finite."""
        if self._report is None:  # nothing was done in this round
            return False
        bad = (~self.state.norms().finite).to(torch.float32).view(1)
        self.group.sum_(bad)
        if not bool(bad):
            return self._do_replicas_differ()
        what = "a parameter, buffer or optimizer value is not finite"
        self._condemn(Judgement(Verdict.rollback, "state", "nonfinite", what))
        return True

    def _do_replicas_differ(self) -> bool:
        """Whether the ranks no longer hold the same bits."""
        with self.clock("reduce"):
            what = self._replicas.difference(self.state)
        if what:
            self._condemn(Judgement(Verdict.rollback, "state", "replicas_differ", what))
        return bool(what)

    def _condemn(self, judgement: Judgement) -> None:
        """Judge the last step anew, by what it left behind."""
        assert self._report is not None
        self._bad_step = self.state.data_step - 1
        self._report = self._report._replace(judgement=judgement)
        self._capture(self._bad_step)

    def _capture(self, data_step: int) -> None:
        """Keep what is needed to compute the last step again."""
        report, loaded = self._report, self._loaded
        assert report is not None
        assert loaded is not None
        ranks = self.group.gather(
            {
                "image_ids": loaded.image_ids,
                "epochs": loaded.epochs,
                "own": report.own,
                "statistics": report.statistics,
                "planted": self.settings.faults.happened,
            }
        )
        if self.group.is_main:
            self.capsules.write(
                data_step,
                report.judgement,
                ledger_records=sum(1 for _ in self.ledger.read()),
                facts={
                    "step": self.state.step,
                    "world_size": self.group.size,
                    "device": self.group.device.type,
                    "threads": torch.get_num_threads(),
                    "calm": report.calm,
                    "loss": report.loss,
                    "terms": report.terms,
                    "gradient_norm": report.gradient_norm,
                    "ranks": ranks,
                },
            )

    def _save(self, *, wait: bool = False) -> None:
        with self.clock("checkpoint"):
            self.manager.wait()
            self.probation.settle()  # also where every step saves, and a write is always under way
            self._log_samples()
            self.manager.save(self.state, self.origin, wait=wait)
        self.probation.add(self.state.data_step, fit=self.state.guard.consecutive_spikes == 0)

    def _log_samples(self) -> None:
        """Before the checkpoint that holds them; on a full disk it waits for the next one."""
        try:
            self.samples.flush()
        except OSError as error:
            self.observer.record("sample_log", data_step=self.state.data_step, what=str(error))

    def _save_last(self) -> None:
        """The checkpoint that the next round or the user goes on from; without it this round has failed."""
        if self.group.is_main:
            self.manager.wait()
            if self.manager.latest() != self.state.data_step:
                self._save(wait=True)
