"""After which data steps a checkpoint is written: a fixed number, or as many as costs and failures call for.

With `checkpoint.every_steps=0` the interval is sqrt(2 x cost of a save x mean time between failures), where
what saves cost and what failures throw away is least in sum: J. W. Young, A first order approximation to the
optimum checkpoint interval, CACM 17(9), 1974. J. T. Daly, A higher order estimate of the optimum checkpoint
interval for restart dumps, FGCS 22(3), 2006, comes down to the same where a save is short beside the time
between failures.

Which checkpoints exist decides where a rollback goes, and so what the run becomes. The choice is therefore
made once in the life of a run and kept in the ledger, with the data step from which it holds: a process that
comes later saves where an earlier one would have. It is measured all the same, so two runs that roll back may
differ by it, and the default is a fixed number.
"""

from __future__ import annotations

import math
import time

from univip.checkpoint.manager import CheckpointManager, Cost
from univip.config import CheckpointConfig
from univip.engine.distributed import Group
from univip.observe import Observer
from univip.resilience.ledger import Ledger

TRIAL_STEPS = 100  # data steps between two saves until the interval is chosen, and of the steps measured
_WARM_SAVES = 2  # of this process: the first touch fresh memory
# A write takes cores and disk from the steps beside it, which the loop is not blocked for: at most a tenth of
# the time, and so it never lasts longer than the interval.
_INTERVAL_PER_WRITE = 10
_MOST_S = 3600.0  # of work that a failure may cost, however rare it is said to be


def interval_s(cost: Cost, mtbf_s: float) -> float:
    """The time between two saves that loses least, within what the writes allow."""
    best_s = min(math.sqrt(2 * cost.blocked_s * mtbf_s), _MOST_S)
    return max(best_s, _INTERVAL_PER_WRITE * cost.background_s)


class Cadence:
    """Says after each data step whether to save; every rank asks, and gets the same answer.

    Args:
        config: A fixed interval, or 0.
        group: Rank 0 measures and chooses.
        manager: Knows what saves cost.
        ledger: Where the choice is kept.
        observer: Told of it.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        group: Group,
        manager: CheckpointManager,
        ledger: Ledger,
        observer: Observer,
    ) -> None:
        self.config = config
        self.group = group
        self.manager = manager
        self.ledger = ledger
        self.observer = observer
        self._chosen: tuple[int, int] | None = None  # data step from which it holds, interval
        self._mark: tuple[int, float] | None = None  # data step and time from which steps are measured

    def begin(self) -> None:
        """Go on as the ledger says, at the start of a round and after a rollback."""
        self._mark = None
        if not self.config.every_steps:
            self._chosen = self.group.broadcast(
                self.ledger.decisions().cadence if self.group.is_main else None
            )

    def is_due(self, data_step: int) -> bool:
        """Whether to save where this is the next data step."""
        if self.config.every_steps:
            return data_step % self.config.every_steps == 0
        if self._chosen is None and data_step % TRIAL_STEPS == 0:
            self._chosen = self.group.broadcast(self._choose(data_step) if self.group.is_main else None)
        if self._chosen is None or data_step < self._chosen[0]:
            return data_step % TRIAL_STEPS == 0
        return data_step % self._chosen[1] == 0

    def _choose(self, data_step: int) -> tuple[int, int] | None:
        """Choose the interval if enough has been measured; in the ledger before anything follows from it."""
        self.manager.wait()  # as the save that is due here would
        mark, self._mark = self._mark, (data_step, time.perf_counter())
        cost = self.manager.cost
        if mark is None or cost is None or cost.saves < _WARM_SAVES:
            return None
        step_s = (self._mark[1] - mark[1]) / (data_step - mark[0])
        every_steps = max(1, round(interval_s(cost, 3600 * self.config.mtbf_h) / step_s))
        measured = {
            "blocked_s": cost.blocked_s,
            "background_s": cost.background_s,
            "step_s": step_s,
            "mtbf_h": self.config.mtbf_h,
        }
        self.ledger.append("cadence", data_step=data_step, every_steps=every_steps, **measured)
        self.observer.record("cadence", data_step=data_step, every_steps=every_steps, **measured)
        return data_step, every_steps
