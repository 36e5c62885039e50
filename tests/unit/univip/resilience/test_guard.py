"""The guard's verdicts."""

from __future__ import annotations

import json

import pytest

from univip.config import ResilienceConfig
from univip.errors import CheckpointError
from univip.resilience.guard import Guard, Health, Judgement, Verdict

FINE = Health(state=False, loss=False, gradient=False)
BAD_LOSS = Health(state=False, loss=True, gradient=True)
BAD_GRADIENT = Health(state=False, loss=False, gradient=True)
BAD_STATE = Health(state=True, loss=True, gradient=True)


def make_guard(max_consecutive_skips: int = 2) -> Guard:
    return Guard(
        ResilienceConfig(
            max_consecutive_skips=max_consecutive_skips, spike_window=8, max_consecutive_spikes=3
        )
    )


def judge(guard: Guard, health: Health = FINE, loss: float = 1.0, gradient_norm: float = 1.0) -> Judgement:
    return guard.judge(health, loss=loss, gradient_norm=gradient_norm)


def used_to(loss: float) -> Guard:
    """A guard whose window is full of this loss."""
    guard = make_guard()
    for _ in range(8):
        judge(guard, loss=loss)
    return guard


def test_finite_values_are_applied() -> None:
    assert judge(make_guard()).is_good


def test_a_bad_batch_is_skipped_and_named_by_the_first_place_it_shows() -> None:
    guard = make_guard()

    assert judge(guard, BAD_LOSS)[:2] == (Verdict.skip, "loss")
    assert judge(guard, BAD_GRADIENT)[:2] == (Verdict.skip, "gradient")


def test_bad_state_rolls_back_at_once() -> None:
    assert judge(make_guard(), BAD_STATE)[:2] == (Verdict.rollback, "state")


def test_too_many_skips_in_a_row_roll_back_and_the_count_starts_again() -> None:
    guard = make_guard()

    verdicts = [judge(guard, BAD_LOSS).verdict for _ in range(4)]

    assert verdicts == [Verdict.skip, Verdict.skip, Verdict.rollback, Verdict.skip]


def test_a_good_step_between_two_bad_ones_resets_the_count() -> None:
    guard = make_guard(max_consecutive_skips=1)

    verdicts = [judge(guard, health).verdict for health in (BAD_LOSS, FINE, BAD_LOSS)]

    assert verdicts == [Verdict.skip, Verdict.ok, Verdict.skip]


@pytest.mark.parametrize("number", ["loss", "gradient_norm"])
def test_one_spike_is_applied_and_proves_nothing(number: str) -> None:
    guard = used_to(1.0)
    before = guard.good_steps

    judgement = judge(guard, **{number: 100.0})  # type: ignore[arg-type]

    assert (judgement.verdict, judgement.reason) == (Verdict.ok, "spike")
    assert judgement.where == number.removesuffix("_norm")
    assert "100, usual 1, limit " in judgement.what
    assert not judgement.is_good
    assert guard.good_steps == before


def test_spikes_in_a_row_roll_back_and_say_how_far_the_trouble_reaches() -> None:
    guard = used_to(1.0)

    judgements = [judge(guard, loss=100.0) for _ in range(3)]

    assert [each.verdict for each in judgements] == [Verdict.ok, Verdict.ok, Verdict.rollback]
    assert (judgements[-1].reason, judgements[-1].steps_before) == ("spike", 2)


def test_a_usual_step_ends_a_row_of_spikes_and_a_skipped_one_does_not() -> None:
    ended, unbroken = used_to(1.0), used_to(1.0)

    for guard, health in ((ended, FINE), (unbroken, BAD_LOSS)):
        judge(guard, loss=100.0)
        judge(guard, loss=100.0)
        judge(guard, health)

    assert judge(ended, loss=100.0).verdict is Verdict.ok
    assert judge(unbroken, loss=100.0).verdict is Verdict.rollback


def test_nothing_is_a_spike_before_the_window_is_full() -> None:
    guard = make_guard()
    for _ in range(7):
        judge(guard)

    assert judge(guard, loss=1e6).is_good
    assert judge(guard, loss=1e12).reason == "spike"


def test_a_value_that_is_not_finite_never_enters_the_window() -> None:
    guard = used_to(1.0)
    before = guard.facts()

    judge(guard, BAD_LOSS, loss=float("nan"), gradient_norm=float("inf"))

    assert {**guard.facts(), "consecutive_skips": 0} == before
    json.dumps(guard.facts(), allow_nan=False)


def test_a_guard_that_was_saved_and_loaded_judges_like_one_that_was_not() -> None:
    whole = used_to(0.1 + 0.2)
    judge(whole, loss=100.0)
    loaded = make_guard()
    loaded.load(json.loads(json.dumps(whole.facts())))

    for loss in (100.0, 100.0, 0.3, 0.5, 100.0):
        assert judge(loaded, loss=loss) == judge(whole, loss=loss)
        assert loaded.facts() == whole.facts()


def test_facts_of_something_else_are_refused() -> None:
    with pytest.raises(CheckpointError, match="`guard` of the manifest must hold"):
        make_guard().load({"consecutive_skips": 0})
