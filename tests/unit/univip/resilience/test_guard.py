"""The guard's verdicts."""

from __future__ import annotations

from univip.resilience.guard import Guard, Health, Verdict

FINE = Health(state=False, loss=False, gradient=False)
BAD_LOSS = Health(state=False, loss=True, gradient=True)
BAD_GRADIENT = Health(state=False, loss=False, gradient=True)
BAD_STATE = Health(state=True, loss=True, gradient=True)


def test_finite_values_are_applied() -> None:
    assert Guard(max_consecutive_skips=2).judge(FINE).verdict is Verdict.ok


def test_a_bad_batch_is_skipped_and_named_by_the_first_place_it_shows() -> None:
    guard = Guard(max_consecutive_skips=2)

    assert guard.judge(BAD_LOSS)[:2] == (Verdict.skip, "loss")
    assert guard.judge(BAD_GRADIENT)[:2] == (Verdict.skip, "gradient")


def test_bad_state_rolls_back_at_once() -> None:
    assert Guard(max_consecutive_skips=2).judge(BAD_STATE)[:2] == (Verdict.rollback, "state")


def test_too_many_skips_in_a_row_roll_back_and_the_count_starts_again() -> None:
    guard = Guard(max_consecutive_skips=2)

    verdicts = [guard.judge(BAD_LOSS).verdict for _ in range(4)]

    assert verdicts == [Verdict.skip, Verdict.skip, Verdict.rollback, Verdict.skip]


def test_a_good_step_between_two_bad_ones_resets_the_count() -> None:
    guard = Guard(max_consecutive_skips=1)

    verdicts = [guard.judge(health).verdict for health in (BAD_LOSS, FINE, BAD_LOSS)]

    assert verdicts == [Verdict.skip, Verdict.ok, Verdict.skip]
