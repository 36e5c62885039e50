"""One slow rank is named within 20 steps; noise, hiccups and unequal shares name nobody."""

from __future__ import annotations

import random

import pytest

from univip.engine.stragglers import Stragglers

NAMED_WITHIN = 20  # data steps


def noisy(draws: random.Random, usual_s: float = 0.3) -> float:
    """Seconds of a step: a spread of a fifth, and one in fifty takes ten times as long."""
    return usual_s * draws.lognormvariate(0.0, 0.2) * (10.0 if draws.random() < 0.02 else 1.0)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ten_thousand_noisy_steps_of_equal_ranks_name_nobody(ranks: int) -> None:
    draws = random.Random(ranks)
    watch = Stragglers([64] * ranks)

    named = [watch.sees([noisy(draws) for _ in range(ranks)]) for _ in range(10_000)]

    assert set(named) == {None}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("seed", range(20))
def test_a_rank_that_becomes_twice_as_slow_is_named_once_and_soon(ranks: int, seed: int) -> None:
    draws = random.Random(seed)
    watch = Stragglers([64] * ranks)
    slow = draws.randrange(ranks)
    named = []
    for step in range(300):
        seconds = [noisy(draws) for _ in range(ranks)]
        seconds[slow] *= 2.0 if step >= 100 else 1.0
        if found := watch.sees(seconds):
            named.append((step, found.rank))

    [(step, rank)] = named
    assert rank == slow
    assert 100 < step <= 100 + NAMED_WITHIN


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_rank_that_is_slower_by_half_is_named_within_twenty_steps_of_usual_noise(ranks: int) -> None:
    """Usual: a spread of a twentieth, as steps of one size on one kind of processor have."""
    draws = random.Random(0)
    watch = Stragglers([64] * ranks)
    named = []
    for step in range(200):
        seconds = [0.3 * draws.lognormvariate(0.0, 0.05) for _ in range(ranks)]
        seconds[1] *= 1.5 if step >= 50 else 1.0
        if found := watch.sees(seconds):
            named.append((step, found.rank))

    [(step, rank)] = named
    assert rank == 1
    assert 50 < step <= 50 + NAMED_WITHIN


def test_a_rank_that_keeps_up_again_is_named_again_when_it_falls_back() -> None:
    watch = Stragglers([8, 8])
    steps = [*[2.0] * 40, *[1.0] * 40, *[2.0] * 40]

    named = [step for step, seconds in enumerate(steps) if watch.sees([1.0, seconds])]

    assert len(named) == 2
    assert named[0] < NAMED_WITHIN
    assert 80 < named[1] < 80 + NAMED_WITHIN


@pytest.mark.parametrize("share_of_images", [0.0, 0.5, 1.0])
def test_a_larger_share_is_no_slowness(share_of_images: float) -> None:
    """Three images on two ranks; some, none or all of the work is in proportion to them."""
    watch = Stragglers([2, 1])
    seconds = [1.0 - share_of_images + share_of_images * images for images in (2, 1)]

    assert [watch.sees(seconds) for _ in range(100)] == [None] * 100


def test_a_rank_alone_is_slower_than_nobody() -> None:
    watch = Stragglers([8])

    assert [watch.sees([1.0]) for _ in range(50)] == [None] * 50
    assert watch.slowest is None
