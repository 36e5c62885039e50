"""What the filter did with each raw box: kept, or dropped and why.

Read from the raw boxes and the list that was kept, not from another run of the filter, so that it tells what
lies in the store.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from univip.types import Boxes


class Fate(StrEnum):
    """In the order in which the filter looks; a box meets the first that holds."""

    small = "too small"
    elongated = "too elongated"
    overlapping = "overlaps a kept box"
    kept = "kept"


def fates(raw: Boxes, kept: Boxes, *, min_size_px: int, max_ratio: float) -> dict[Fate, Boxes]:
    """Raw boxes by what became of them; together they are all of them.

    Args:
        raw: int32 [N, 4] xywh, without duplicates.
        kept: int32 [M, 4], the list filtered from them.
        min_size_px: Smallest edge of the list.
        max_ratio: Longest edge over shortest of the list.
    """
    edges = raw[:, 2:].astype(np.float64)
    small = edges.min(1, initial=np.inf) < min_size_px
    elongated = ~small & (edges.max(1, initial=0.0) / edges.min(1, initial=np.inf) > max_ratio)
    names = {box.tobytes() for box in np.ascontiguousarray(kept, np.int32)}
    is_kept = np.array([box.tobytes() in names for box in np.ascontiguousarray(raw, np.int32)], bool)
    overlapping = ~(small | elongated | is_kept)
    found = {Fate.small: small, Fate.elongated: elongated, Fate.overlapping: overlapping, Fate.kept: is_kept}
    return {fate: raw[chosen] for fate, chosen in found.items()}
