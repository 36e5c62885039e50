"""How far to go back when the state went bad: a ladder whose rungs have budgets.

    skip (the guard)   the batch changes nothing                                     max_consecutive_skips
    rollback           newest healthy checkpoint; jump over what led to the fault    max_rollbacks
    calm rollback      an older one than last time; then fp32, clipped gradients     max_calm_rollbacks
    stop               a person must look

A rollback is calm where the one before did not last: trouble came back within `calm_steps` data steps. All of
it is decided from the ledger, so a run that is killed in between goes on with the same rung.
"""

from __future__ import annotations

from typing import NamedTuple

from univip.config import ResilienceConfig
from univip.resilience.ledger import Decisions


class Rung(NamedTuple):
    """What to do about one bad state.

    Attributes:
        spent: The option whose budget is spent: stop. Empty otherwise.
        older_than: Prefer a checkpoint of an earlier data step than this; None: the newest will do.
        calm_steps: Data steps after the checkpoint to be computed calmly.
    """

    spent: str = ""
    older_than: int | None = None
    calm_steps: int = 0


def next_rung(decisions: Decisions, bad_step: int, limits: ResilienceConfig) -> Rung:
    """Choose the rung for a state that was found bad at `bad_step`."""
    rollbacks = decisions.rollbacks
    if len(rollbacks) >= limits.max_rollbacks:
        return Rung(spent="resilience.max_rollbacks")
    if not rollbacks or bad_step >= rollbacks[-1].at + limits.calm_steps:
        return Rung()
    if sum(rollback.calm_steps > 0 for rollback in rollbacks) >= limits.max_calm_rollbacks:
        return Rung(spent="resilience.max_calm_rollbacks")
    return Rung(older_than=rollbacks[-1].target, calm_steps=limits.calm_steps)
