"""The filter of the proposals: size, shape, and no two boxes alike.

As ORL runs it before matching and UniVIP before training. UniVIP has neither ORL's limit to the first 100
boxes (`top_n`) nor its promise of at least one box: an image may end with none. What is kept depends on the
boxes before only, so the first n of a list are what `top_n=n` keeps.

Compiled: the rule is one box at a time, and a data set has some hundred million of them.
Shapes: M boxes of N images in, K boxes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numba import types

from univip.proposals.machine_code import Store

if TYPE_CHECKING:
    from univip.types import Boxes

_store = Store("filters", "filters")


def filter_boxes(
    boxes: Boxes, *, min_size_px: int, max_ratio: float, max_iou: float, top_n: int | None = None
) -> Boxes:
    """Boxes that are large, not elongated, and unlike every box kept before them.

    Walks the list in order and drops a box if an edge is below `min_size_px`, if one edge is more than
    `max_ratio` times the other, or if its intersection over union with a kept box exceeds `max_iou`. Equality
    is kept throughout.

    Args:
        boxes: int [N, 4] xywh.
        min_size_px: Smallest edge, at least 1.
        max_ratio: Longest edge over shortest.
        max_iou: Largest intersection over union of two kept boxes.
        top_n: Keep only the first so many; None keeps all.

    Returns:
        int32 [M, 4] xywh, order kept.

    Raises:
        ValueError: If `min_size_px` is below 1.
    """
    kept, _ = filter_lists(
        boxes,
        np.array([0, len(boxes)]),
        min_size_px=min_size_px,
        max_ratio=max_ratio,
        max_iou=max_iou,
    )
    return kept[:top_n]


def filter_lists(
    boxes: npt.NDArray[np.integer],
    offsets: npt.NDArray[np.int64],
    *,
    min_size_px: int,
    max_ratio: float,
    max_iou: float,
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    """`filter_boxes` for the lists of many images at once.

    Args:
        boxes: int [M, 4] xywh of all images, one list after the other.
        offsets: Where the lists begin and end, int64 [N + 1].
        min_size_px: Smallest edge, at least 1.
        max_ratio: Longest edge over shortest.
        max_iou: Largest intersection over union of two kept boxes of an image.

    Returns:
        The kept boxes, int32 [K, 4] xywh, and where their lists begin and end, int64 [N + 1].

    Raises:
        ValueError: If `min_size_px` is below 1.
    """
    if min_size_px < 1:
        raise ValueError(f"`min_size_px` must be at least 1, but is {min_size_px}.")
    if len(offsets) == 1:  # no image at all
        return np.empty((0, 4), np.int32), offsets
    kept, counts = _first_unlike(
        np.ascontiguousarray(boxes, np.int32), offsets, min_size_px, float(max_ratio), float(max_iou)
    )
    return boxes[kept].astype(np.int32), np.concatenate([[0], counts.cumsum()])


@_store.compiled(
    types.Tuple((types.int64[::1], types.int64[::1]))(  # type: ignore[no-untyped-call]
        types.Array(types.int32, 2, "C", readonly=True),
        types.Array(types.int64, 1, "C", readonly=True),
        types.int64,
        types.float64,
        types.float64,
    )
)
def _first_unlike(
    boxes: Boxes, offsets: npt.NDArray[np.int64], min_size_px: int, max_ratio: float, max_iou: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of the kept boxes [K], and their number per image [N]; all arithmetic in 64 bits."""
    kept = np.empty(len(boxes), np.int64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    areas = np.empty(np.diff(offsets).max(), np.float64)  # of the kept boxes of one image
    end = 0
    for image in range(len(offsets) - 1):
        start = end
        for candidate in range(offsets[image], offsets[image + 1]):
            x, y, w, h = boxes[candidate]
            # Division, not w <= ratio * h: a rounded quotient equals the limit wherever the true one does.
            if min(w, h) < min_size_px or max(w, h) / min(w, h) > max_ratio:
                continue
            area = w * h
            # Boxes of very unlike areas cannot be alike; a little more is let through than that.
            smallest = max_iou * area * 0.999
            largest = area / max(max_iou, 1e-9) * 1.001
            is_unlike = True
            for place in range(end - start):
                if not smallest <= areas[place] <= largest:
                    continue
                left, top, width, height = boxes[kept[start + place]]
                across = min(x + w, left + width) - max(x, left)
                down = min(y + h, top + height) - max(y, top)
                if across > 0 and down > 0:
                    common = across * down
                    if common / (area + width * height - common) > max_iou:
                        is_unlike = False
                        break
            if is_unlike:
                areas[end - start] = area
                kept[end] = candidate
                end += 1
        counts[image] = end - start
    return kept[:end], counts


_store.publish()
