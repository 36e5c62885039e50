"""What selective search costs, as a rule of thumb: cuts the work into shards, and tells slow from stuck.

Nothing here decides a box. The figures are of OpenCV's search, one core of a current server, photographs of
COCO; an engine that is faster makes shards shorter than asked for until its own figures stand here.
"""

from __future__ import annotations

import math

# Core seconds per million pixels, by mode.
SECONDS_PER_MEGAPIXEL = {"single": 1.0, "fast": 10.0, "quality": 80.0}

# An image is given up only after this many times what it should cost: machines are slow, busy, or swap.
PATIENCE = 20


def search_seconds(pixels: float, mode: str) -> float:
    """About how long one core searches so many pixels, s."""
    return SECONDS_PER_MEGAPIXEL[mode] * pixels / 1e6


def count_shards(num_images: int, pixels: float, mode: str, *, core_seconds: float, most_images: int) -> int:
    """Number of shards so that none is much more work than `core_seconds`.

    Args:
        num_images: Of the data set.
        pixels: Of all images together.
        mode: Of the search.
        core_seconds: Work of one shard at most, s.
        most_images: Images of one shard at most: it holds their boxes in memory.
    """
    by_work = math.ceil(search_seconds(pixels, mode) / core_seconds)
    return min(num_images, max(1, by_work, math.ceil(num_images / most_images)))
