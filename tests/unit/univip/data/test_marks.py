from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from univip.data.marks import add_marks, from_sums, mark_of_samples, mark_of_views, to_bytes

IDS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 2**63 - 1)), min_size=1, max_size=30)


def mark(samples: list[tuple[int, int]]) -> int:
    epochs, ids = np.array(samples, np.int64).reshape(-1, 2).T
    return mark_of_samples(epochs, ids)


def test_the_hash_is_splitmix64() -> None:
    # The first outputs of the published generator with seed 0 and with seed 1234567.
    first = 0xE220A8397B1DCDAF
    # The epoch 0 is mixed to `first`, which the image id takes out again: the seed is mixed once more.
    for seed, output in ((0, first), (1234567, 6457827717110365317)):
        image_id = np.array([first ^ seed], np.uint64).view(np.int64)
        assert mark_of_samples(np.zeros(1, np.int64), image_id) == output


@given(IDS, st.randoms(use_true_random=False))
def test_order_and_division_do_not_matter(samples: list[tuple[int, int]], draws: object) -> None:
    shuffled = list(samples)
    draws.shuffle(shuffled)  # type: ignore[attr-defined]
    middle = len(samples) // 2

    assert mark(shuffled) == mark(samples)
    assert add_marks([mark(samples[:middle]), mark(samples[middle:])]) == mark(samples)


@given(IDS, st.integers(0, 29), st.integers(1, 2**40))
def test_another_image_or_epoch_is_another_mark(
    samples: list[tuple[int, int]], place: int, change: int
) -> None:
    epoch, image_id = samples[place % len(samples)]
    others = [(epoch + change, image_id), (epoch, (image_id + change) % 2**63)]

    for other in others:
        changed = list(samples)
        changed[place % len(samples)] = other
        assert mark(changed) != mark(samples)


def test_a_sample_seen_twice_does_not_vanish() -> None:
    assert mark([(0, 5), (0, 5)]) != mark([(0, 6), (0, 6)])
    assert mark([(0, 5), (0, 5)]) != 0


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=300))
def test_parts_add_up_in_single_precision(marks: list[int]) -> None:
    sums = torch.zeros(8, dtype=torch.float32)
    for each in marks:
        sums += torch.tensor(to_bytes(each), dtype=torch.float32)

    assert from_sums(sums.tolist()) == add_marks(marks) == sum(marks) % 2**64


@pytest.mark.parametrize("change", ["epoch", "image", "scene", "box", "fewer"])
def test_the_mark_of_views_depends_on_everything(change: str) -> None:
    scenes, boxes = np.arange(8, dtype=np.int32).reshape(2, 4), np.ones((3, 4), np.int32)
    before = mark_of_views(1, 2, scenes, boxes)
    epoch, image_id = (2, 2) if change == "epoch" else (1, 3) if change == "image" else (1, 2)
    if change == "scene":
        scenes = scenes + np.eye(2, 4, dtype=np.int32)
    if change == "box":
        boxes = boxes + np.eye(3, 4, dtype=np.int32)

    assert mark_of_views(epoch, image_id, scenes, boxes[:2] if change == "fewer" else boxes) != before
