"""The rungs of going back, and their budgets."""

from __future__ import annotations

from univip.config import ResilienceConfig
from univip.resilience.ladder import Rung, next_rung
from univip.resilience.ledger import Decisions, Rollback

LIMITS = ResilienceConfig(max_rollbacks=4, max_calm_rollbacks=2, calm_steps=100)
PLAIN = Rung()


def after(*rollbacks: Rollback) -> Decisions:
    return Decisions(rollbacks=list(rollbacks))


def rollback(target: int, at: int, calm_steps: int = 0) -> Rollback:
    return Rollback(target, at, (at, at + 1), calm_steps)


def test_the_first_trouble_and_any_far_from_the_last_one_take_a_plain_rollback() -> None:
    assert next_rung(after(), 1000, LIMITS) == PLAIN
    assert next_rung(after(rollback(900, 1000)), 1100, LIMITS) == PLAIN


def test_trouble_soon_again_goes_further_back_and_is_calm_for_a_stretch() -> None:
    rung = next_rung(after(rollback(900, 1000)), 1099, LIMITS)

    assert rung == Rung(older_than=900, calm_steps=100)


def test_trouble_before_the_last_trouble_is_the_same_trouble() -> None:
    assert next_rung(after(rollback(900, 1000)), 950, LIMITS).calm_steps == 100


def test_when_the_budget_of_calm_rollbacks_is_spent_the_run_stops() -> None:
    decisions = after(rollback(900, 1000), rollback(800, 1010, 100), rollback(700, 1020, 100))

    assert next_rung(decisions, 1030, LIMITS).spent == "resilience.max_calm_rollbacks"
    # Elsewhere a plain one is still left.
    assert next_rung(decisions, 5000, LIMITS) == PLAIN


def test_when_the_budget_of_all_rollbacks_is_spent_the_run_stops() -> None:
    decisions = after(*(rollback(at - 100, at) for at in (1000, 2000, 3000, 4000)))

    assert next_rung(decisions, 9000, LIMITS).spent == "resilience.max_rollbacks"


def test_the_calm_stretch_begins_where_the_run_goes_on_from() -> None:
    decisions = after(rollback(900, 1000), rollback(800, 1010, 100))

    assert decisions.calm == [(800, 900)]
