"""The filter against one box at a time, in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import nms

from univip.proposals.filters import filter_boxes, filter_lists
from univip.types import Boxes

Box = tuple[int, int, int, int]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before any test of many examples: hypothesis takes a slow first call for a mistake."""
    filter_boxes(as_boxes([]), min_size_px=1, max_ratio=3.0, max_iou=0.5)


def iou(a: Box, b: Box) -> Fraction:
    """Intersection over union, counted pixel row by pixel column."""
    columns = set(range(a[0], a[0] + a[2])) & set(range(b[0], b[0] + b[2]))
    rows = set(range(a[1], a[1] + a[3])) & set(range(b[1], b[1] + b[3]))
    both = len(columns) * len(rows)
    return Fraction(both, a[2] * a[3] + b[2] * b[3] - both)


def one_at_a_time(boxes: list[Box], min_size: int, max_ratio: Fraction, max_iou: Fraction) -> list[Box]:
    kept: list[Box] = []
    for box in boxes:
        w, h = box[2:]
        if w < min_size or h < min_size or Fraction(w, h) > max_ratio or Fraction(h, w) > max_ratio:
            continue
        if all(iou(box, other) <= max_iou for other in kept):
            kept.append(box)
    return kept


def as_boxes(boxes: list[Box]) -> Boxes:
    return np.array(boxes, np.int32).reshape(-1, 4)


def kept(
    boxes: list[Box], *, min_size_px: int = 1, max_ratio: float = 3.0, max_iou: float = 0.5
) -> list[Box]:
    result = filter_boxes(as_boxes(boxes), min_size_px=min_size_px, max_ratio=max_ratio, max_iou=max_iou)
    assert result.dtype == np.int32
    assert result.shape[1:] == (4,)
    return [tuple(box) for box in result.tolist()]


# Few distinct numbers, so that equal sizes, ratios of exactly 3 and overlaps of exactly one half are common.
edges = st.integers(1, 12)
places = st.integers(0, 8)
box_lists = st.lists(st.tuples(places, places, edges, edges), max_size=30)
limits = {
    "min_size": st.integers(1, 6),
    "max_ratio": st.sampled_from(["1", "1.5", "3", "2.2"]),
    "max_iou": st.sampled_from(["0", "0.1", "0.3", "0.5", "0.7", "1"]),
}


@given(boxes=box_lists, **limits)
def test_it_keeps_what_a_loop_in_exact_fractions_keeps(
    boxes: list[Box], min_size: int, max_ratio: str, max_iou: str
) -> None:
    expected = one_at_a_time(boxes, min_size, Fraction(max_ratio), Fraction(max_iou))

    assert kept(boxes, min_size_px=min_size, max_ratio=float(max_ratio), max_iou=float(max_iou)) == expected


@given(boxes=box_lists, **limits)
def test_filtering_twice_changes_nothing(
    boxes: list[Box], min_size: int, max_ratio: str, max_iou: str
) -> None:
    once = kept(boxes, min_size_px=min_size, max_ratio=float(max_ratio), max_iou=float(max_iou))

    assert kept(once, min_size_px=min_size, max_ratio=float(max_ratio), max_iou=float(max_iou)) == once


@given(boxes=box_lists, **limits)
def test_no_two_kept_boxes_are_alike_and_their_order_is_that_of_the_list(
    boxes: list[Box], min_size: int, max_ratio: str, max_iou: str
) -> None:
    found = kept(boxes, min_size_px=min_size, max_ratio=float(max_ratio), max_iou=float(max_iou))

    assert all(iou(a, b) <= Fraction(max_iou) for a, b in combinations(found, 2))
    rest = iter(boxes)
    assert all(box in rest for box in found)  # each is found behind the one before


@pytest.mark.parametrize("seed", range(3))
def test_it_keeps_what_non_maximum_suppression_keeps_with_falling_scores(seed: int) -> None:
    """On boxes as selective search gives them: 2,000 of all sizes in a photograph of 640 x 480."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(np.log(8), np.log([640, 480]), (2000, 2))).astype(np.int32)
    boxes = np.concatenate([random.integers(0, [641, 481] - sizes), sizes], axis=1).astype(np.int32)
    for size in (64, 96):
        w, h = boxes[:, 2:].T
        allowed = boxes[(np.minimum(w, h) >= size) & (w <= 3 * h) & (h <= 3 * w)]
        corners = torch.from_numpy(np.concatenate([allowed[:, :2], allowed[:, :2] + allowed[:, 2:]], axis=1))
        chosen = nms(corners.double(), torch.arange(len(allowed), 0, -1).double(), 0.5)

        found = filter_boxes(boxes, min_size_px=size, max_ratio=3.0, max_iou=0.5)

        assert len(found) > 30
        np.testing.assert_array_equal(found, allowed[chosen.numpy()])


@given(st.lists(box_lists, max_size=6))
def test_many_lists_at_once_are_each_filtered_by_itself(lists: list[list[Box]]) -> None:
    offsets = np.cumsum([0, *map(len, lists)])
    boxes = as_boxes([box for some in lists for box in some])

    found, ends = filter_lists(boxes, offsets, min_size_px=2, max_ratio=3.0, max_iou=0.5)

    assert found.dtype == np.int32
    assert len(ends) == len(lists) + 1
    for number, some in enumerate(lists):
        part = found[ends[number] : ends[number + 1]]
        assert [tuple(box) for box in part.tolist()] == kept(some, min_size_px=2)


@given(boxes=box_lists, min_size=st.integers(2, 6))
def test_boxes_below_the_size_have_no_influence(boxes: list[Box], min_size: int) -> None:
    large = [box for box in boxes if min(box[2:]) >= min_size]

    assert kept(boxes, min_size_px=min_size) == kept(large, min_size_px=min_size)


@given(boxes=box_lists, top_n=st.integers(0, 5))
def test_top_n_is_a_prefix(boxes: list[Box], top_n: int) -> None:
    some = filter_boxes(as_boxes(boxes), min_size_px=1, max_ratio=3.0, max_iou=0.5, top_n=top_n)

    assert [tuple(box) for box in some.tolist()] == kept(boxes)[:top_n]


def test_equal_width_and_minimum_is_kept() -> None:
    assert kept([(0, 0, 96, 100), (200, 0, 95, 100), (400, 0, 100, 95)], min_size_px=96) == [(0, 0, 96, 100)]


def test_a_ratio_of_exactly_three_is_kept() -> None:
    assert kept([(0, 0, 90, 30), (0, 100, 91, 30), (200, 0, 30, 90), (300, 0, 30, 91)]) == [
        (0, 0, 90, 30),
        (200, 0, 30, 90),
    ]


def test_an_overlap_of_exactly_one_half_is_kept() -> None:
    first, half, more = (0, 0, 10, 10), (0, 0, 10, 5), (0, 0, 10, 6)

    assert kept([first, half]) == [first, half]
    assert kept([first, more]) == [first]


def test_a_dropped_box_suppresses_nothing() -> None:
    first, like_first, like_second = (0, 0, 100, 100), (10, 0, 100, 100), (40, 0, 100, 100)

    assert kept([first, like_first, like_second]) == [first, like_second]


def test_the_96_list_is_not_what_the_64_list_leaves() -> None:
    boxes = [(0, 0, 90, 120), (0, 0, 100, 120)]

    assert kept(boxes, min_size_px=64) == [(0, 0, 90, 120)]
    assert kept(boxes, min_size_px=96) == [(0, 0, 100, 120)]


def test_no_box_is_promised() -> None:
    assert kept([(0, 0, 10, 10)], min_size_px=11) == []
    assert kept([]) == []


def test_areas_beyond_32_bits_are_exact() -> None:
    whole, half, less = (0, 0, 32767, 32766), (0, 0, 32767, 16383), (0, 0, 32767, 16384)

    assert kept([whole, half]) == [whole, half]
    assert kept([whole, less]) == [whole]


def test_a_minimum_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="`min_size_px` must be at least 1, but is 0"):
        filter_boxes(as_boxes([]), min_size_px=0, max_ratio=3.0, max_iou=0.5)
