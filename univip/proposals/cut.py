"""How the search of a data set is cut into shards, and what it costs, as a rule of thumb.

Nothing here decides a box: the merged store does not tell how it was cut. Standard library only, because
`univip submit` plans on the login node. The figures are of one core of a server, on photographs of COCO.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

FOLDER = "shards"

# Core seconds per million pixels, by engine and mode.
SECONDS_PER_MEGAPIXEL = {
    "opencv": {"single": 1.3, "fast": 9.0, "quality": 40.0},
    "fast": {"single": 0.3, "fast": 1.2, "quality": 5.0},
}

# An image is given up only after this many times what it should cost: machines are slow, busy, or swap.
PATIENCE = 20


def search_seconds(pixels: float, engine: str, mode: str) -> float:
    """About how long one core searches so many pixels, s."""
    return SECONDS_PER_MEGAPIXEL[engine][mode] * pixels / 1e6


def count_shards(num_images: int, core_seconds: float, *, shard_core_seconds: float, most_images: int) -> int:
    """Number of shards so that none is much more work than asked for.

    Args:
        num_images: Of the data set.
        core_seconds: Work of all of it, s.
        shard_core_seconds: Work of one shard, s.
        most_images: Images of one shard: it holds their boxes in memory.
    """
    by_work = math.ceil(core_seconds / shard_core_seconds)
    return min(num_images, max(1, by_work, math.ceil(num_images / most_images)))


def cut(pixels: Sequence[int], num_shards: int) -> list[int]:
    """Borders of shards of nearly equal work, none of them empty.

    Args:
        pixels: Of each image, in index order.
        num_shards: At most as many as there are images.

    Returns:
        `num_shards` + 1 rows, from 0 to the number of images; shard s begins at border s.
    """
    behind = list(accumulate(pixels))  # pixels up to and with image i
    borders = [0]
    for shard in range(1, num_shards):
        wanted = bisect_left(behind, behind[-1] * shard / num_shards) + 1
        least, most = borders[-1] + 1, len(pixels) - (num_shards - shard)
        borders.append(min(max(wanted, least), most))
    return [*borders, len(pixels)]


def shard_file(shard: int) -> str:
    """Name of a shard's store, below `FOLDER`; its report has the suffix `.json`."""
    return f"shard-{shard:05d}.arrow"
