"""Checkpoints on probation: how many good steps each has still to see before a rollback may return to it.

Which checkpoints are healthy decides where a rollback goes, and so what the run becomes. It must not depend
on when a process was replaced or how fast the disk is: the count goes on from the manifests after a restart,
and is settled before every rollback. Rank 0 only.
"""

from __future__ import annotations

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager
from univip.observe import Observer
from univip.resilience.ledger import Ledger


class Probation:
    """Counts good steps, and marks the checkpoints that have seen enough of them.

    Args:
        manager: Of the checkpoints.
        ledger: Told of every checkpoint that becomes healthy.
        observer: Told as well.
        good_steps: How many a checkpoint must see.
    """

    def __init__(
        self, manager: CheckpointManager, ledger: Ledger, observer: Observer, *, good_steps: int
    ) -> None:
        self.manager = manager
        self.ledger = ledger
        self.observer = observer
        self.good_steps = good_steps
        self._remaining: dict[int, int] = {}  # data step of a checkpoint -> good steps

    def add(self, data_step: int, *, fit: bool = True) -> None:
        """A checkpoint was written, or is about to be.

        Args:
            data_step: Of the checkpoint.
            fit: False in the middle of a spike: to return there would be to return to the trouble.
        """
        if fit:
            self._remaining.setdefault(data_step, self.good_steps)
        else:
            self.manager.unfit.add(data_step)

    def resume(self, good_steps: int) -> None:
        """Go on where an earlier process was: `good_steps` led to the state now loaded."""
        for data_step, manifest in self.manager.manifests().items():
            if not self.manager.is_healthy(data_step):
                guard = manifest.facts["guard"]
                self.add(data_step, fit=guard["consecutive_spikes"] == 0)
                if data_step in self._remaining:
                    self._remaining[data_step] = self.good_steps - (good_steps - guard["good_steps"])

    def clear(self) -> None:
        """Forget all: they were abandoned."""
        self._remaining.clear()
        self.manager.unfit.clear()

    def advance(self) -> None:
        """One more good step."""
        for data_step in self._remaining:
            self._remaining[data_step] -= 1
        if not self.manager.is_writing:  # it may be writing one of them
            self.settle()

    def settle(self) -> None:
        """Mark every checkpoint that has seen enough; none may be being written."""
        for data_step in [step for step, remaining in self._remaining.items() if remaining <= 0]:
            self.end(data_step)

    def end(self, data_step: int) -> None:
        """Mark one checkpoint as healthy, unless it was pruned or its write failed."""
        self._remaining.pop(data_step, None)
        try:
            if not self.manager.mark_healthy(data_step):
                return
            self.ledger.append("healthy", checkpoint=data_step)
        except OSError as error:  # a full disk costs a target of rollbacks, not the run
            self.observer.record("checkpoint", data_step=data_step, outcome="failure", what=str(error))
            return
        self.observer.record("healthy", data_step=data_step, checkpoint=layout.name_of(data_step))
