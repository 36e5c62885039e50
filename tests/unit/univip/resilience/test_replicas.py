"""Which rank differs, told from sums of bits."""

from __future__ import annotations

from univip.resilience.replicas import describe

RIGHT = {"online.a": 5, "online.b": 7, "target.a": 1}
WRONG = {"online.a": 5, "online.b": 6, "target.a": 3}


def test_the_rank_that_differs_from_the_majority_is_named_with_its_tensors() -> None:
    assert describe([RIGHT, RIGHT, WRONG]) == (
        "rank 2 differs from the other 2 ranks in `online.b`, `target.a`"
    )


def test_two_ranks_alone_are_both_named() -> None:
    assert describe([WRONG, RIGHT]) == (
        "ranks 0, 1 differ from each other in `online.b`, `target.a`; too few agree to tell which is wrong"
    )


def test_a_long_list_of_tensors_is_cut() -> None:
    digests = [{str(number): rank for number in range(9)} for rank in (0, 0, 1)]

    assert describe(digests).endswith("in `0`, `1`, `2` and 6 more")
