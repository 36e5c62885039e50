"""Every raw box is told one fate, and it is the filter's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from univip.proposals.fates import Fate, fates
from univip.proposals.filters import filter_boxes


@given(arrays(np.int32, st.tuples(st.integers(0, 30), st.just(4)), elements=st.integers(1, 300)))
@settings(max_examples=100, deadline=None)
def test_fates_are_those_of_the_filter_one_box_at_a_time(boxes: npt.NDArray[np.int32]) -> None:
    raw = np.unique(boxes, axis=0).reshape(-1, 4)
    kept = filter_boxes(raw, min_size_px=64, max_ratio=3.0, max_iou=0.5)

    found = fates(raw, kept, min_size_px=64, max_ratio=3.0)

    fate_of = {tuple(box): fate for fate, some in found.items() for box in some.tolist()}
    assert sum(map(len, found.values())) == len(fate_of) == len(raw)
    names = set(map(tuple, kept.tolist()))
    for box in map(tuple, raw.tolist()):
        _, _, w, h = box
        if w < 64 or h < 64:
            assert fate_of[box] is Fate.small
        elif w / h > 3 or h / w > 3:
            assert fate_of[box] is Fate.elongated
        else:
            assert fate_of[box] is (Fate.kept if box in names else Fate.overlapping)


def test_boxes_at_the_limits_are_not_dropped_for_them() -> None:
    raw = np.array([[0, 0, 64, 192], [0, 0, 63, 100], [0, 0, 64, 193]], np.int32)

    found = fates(raw, raw[:1], min_size_px=64, max_ratio=3.0)

    assert {fate: len(some) for fate, some in found.items()} == {
        Fate.kept: 1,
        Fate.small: 1,
        Fate.elongated: 1,
        Fate.overlapping: 0,
    }
