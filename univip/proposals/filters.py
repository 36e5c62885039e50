"""The filter of the proposals: size, shape, and no two boxes alike.

As ORL runs it before matching and UniVIP before training. UniVIP has neither ORL's limit to the first 100
boxes (`top_n`) nor its promise of at least one box: an image may end with none. Shapes: N boxes in, M boxes
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from univip.data.views import iou

if TYPE_CHECKING:
    from univip.types import Boxes


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
    if min_size_px < 1:
        raise ValueError(f"`min_size_px` must be at least 1, but is {min_size_px}.")
    w, h = boxes[:, 2], boxes[:, 3]
    large = boxes[(w >= min_size_px) & (h >= min_size_px)]
    # Division, not w <= ratio * h: a rounded quotient equals the limit wherever the true one does.
    ratio = large[:, 2:].max(axis=1) / large[:, 2:].min(axis=1)
    rest = large[ratio <= max_ratio].astype(np.int64)
    kept: list[npt.NDArray[np.int64]] = []
    while len(rest) and len(kept) != top_n:
        kept.append(rest[0])
        rest = rest[1:][iou(rest[:1], rest[1:])[0] <= max_iou]
    return np.array(kept, dtype=np.int32).reshape(-1, 4)
