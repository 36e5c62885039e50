"""What rank 0 decides about going back: where a round starts, and where a rollback leads.

Every decision is in the ledger before it is carried out. One that a killed process left undone is carried out
at the next start, and what follows from it is always read from the ledger, never remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Found
from univip.config import ResilienceConfig
from univip.engine.probation import Probation
from univip.errors import CheckpointError
from univip.observe import Observer
from univip.resilience.guard import Judgement
from univip.resilience.ladder import Rung, next_rung
from univip.resilience.ledger import Decisions, Ledger


@dataclass(frozen=True)
class Course:
    """How to go through the plan: the part of the ledger that every rank must know.

    Attributes:
        windows: Data steps that rollbacks jump over.
        skipped: Others that were skipped once and are jumped over now.
        calm: Stretches [start, stop) to be computed calmly.
    """

    windows: Sequence[int] = ()
    skipped: Sequence[int] = ()
    calm: Sequence[Sequence[int]] = ()

    @classmethod
    def of(cls, decisions: Decisions) -> Course:
        """What the ledger says."""
        windows = decisions.windows
        return cls(sorted(windows), sorted(decisions.skipped - windows), decisions.calm)

    def is_calm(self, data_step: int) -> bool:
        """Whether this data step is to be computed calmly."""
        return any(start <= data_step < stop for start, stop in self.calm)


class Exhausted(NamedTuple):
    """A budget is spent."""

    option: str  # which
    rollbacks: int  # so far


class Decided(NamedTuple):
    """A rollback that the ledger holds and that is carried out on the disk."""

    target: int
    line: int
    in_memory: bool  # the state to return to is held by the manager


class Recovery:
    """Rank 0's view of ledger and checkpoints."""

    def __init__(
        self,
        manager: CheckpointManager,
        ledger: Ledger,
        probation: Probation,
        limits: ResilienceConfig,
        observer: Observer,
    ) -> None:
        self.manager = manager
        self.probation = probation
        self.ledger = ledger
        self.limits = limits
        self.observer = observer

    def course(self) -> dict[str, Any]:
        """The `Course` as it is broadcast."""
        return asdict(Course.of(self.ledger.decisions()))

    def find_start(self) -> Found | None:
        """Carry out what the ledger decided before this start, then find the newest good checkpoint."""
        self.manager.clear_temporary()
        lines = {data_step: manifest.line for data_step, manifest in self.manager.manifests().items()}
        decisions = self.ledger.decisions()
        self.manager.abandon(decisions.abandoned(lines), _name_of(decisions.line))
        found = self.manager.newest_good()
        if found is not None:
            self.manager.abandon(list(found.passed_over), layout.DAMAGED)
        return found

    def roll_back(self, bad_step: int, step: int, judgement: Judgement) -> Decided | Exhausted:
        """Choose where to go back to and what to jump over; in the ledger before anything is touched.

        Args:
            bad_step: Data step of the verdict.
            step: Optimizer steps applied so far, for the record.
            judgement: Why.

        Raises:
            CheckpointError: If a newer attempt owns the run, or no healthy checkpoint is left.
        """
        if not self.manager.still_owner():
            raise CheckpointError(
                "a newer attempt owns this run; this one decides nothing more",
                where=str(self.manager.directory),
            )
        self.manager.wait()
        self.probation.settle()
        decisions = self.ledger.decisions()
        rung = next_rung(decisions, bad_step, self.limits)
        if rung.spent:
            self.ledger.append("exhausted", at=bad_step, rollbacks=decisions.line, option=rung.spent)
            return Exhausted(rung.spent, decisions.line)
        found = self._target(bad_step, rung)
        target = found.data_step
        window = self._window(bad_step, judgement, target)
        why = reason_of(judgement)
        self.ledger.append(
            "rollback", target=target, at=bad_step, window=window, calm_steps=rung.calm_steps, **why
        )
        newer = [data_step for data_step in layout.data_steps(self.manager.directory) if data_step > target]
        self.manager.abandon(newer, _name_of(decisions.line + 1))
        self.observer.record(
            "rollback",
            step=step,
            data_step=bad_step,
            target=target,
            window_start=window[0],
            window_stop=window[1],
            calm_steps=rung.calm_steps,
            steps_discarded=bad_step - target,
            abandoned=len(newer),
            **why,
        )
        return Decided(target, decisions.line + 1, found.in_memory)

    def _target(self, bad_step: int, rung: Rung) -> Found:
        """The newest healthy checkpoint; if it may not be, the newest older one that is left."""
        bounds = [bad_step] if rung.older_than is None else [rung.older_than - 1, rung.older_than, bad_step]
        for at_most in bounds:
            found = self.manager.newest_good(healthy_only=True, at_most=at_most, or_held=True)
            if found is not None:
                return found
        raise CheckpointError(
            "there is no healthy checkpoint to return to",
            where=str(self.manager.directory),
            fix="start a new run with another `train.seed=`",
        )

    def _window(self, bad_step: int, judgement: Judgement, target: int) -> tuple[int, int]:
        """Data steps [start, stop) that led to the fault."""
        if judgement.reason == "replicas_differ":  # memory failed, not the data
            return bad_step + 1, bad_step + 1
        begin = bad_step - judgement.steps_before + 1 - self.limits.skip_window_steps
        return max(target, begin), bad_step + 1


def reason_of(judgement: Judgement) -> dict[str, str]:
    """The reason of a verdict, as ledger and journal record it."""
    return {"where": judgement.where, "reason": judgement.reason, "what": judgement.what}


def _name_of(line: int) -> str:
    """Folder of the checkpoints that the rollback with this number turned away from."""
    return f"rollback-{line:03d}"
