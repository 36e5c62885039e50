"""How fast the filter is on one core, beside the loop that it replaces, on the same boxes in turn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.bench.result import Result, one_core
from univip.config import ProposalsConfig
from univip.data.decode import decode
from univip.data.scan import PHOTO_SUFFIXES
from univip.proposals.filters import filter_boxes
from univip.proposals.search import selective_search

if TYPE_CHECKING:
    from univip.types import Boxes

_COCO_IMAGES = 118_287  # of train2017
_SCALE = 2


def filter_(photographs: Path, *, num_photographs: int = 2, orders: int = 10) -> Result:
    """Both filtered lists of raw boxes in many orders, against one box at a time in plain Python.

    Args:
        photographs: A folder with photographs somewhere below it, such as the data set of the demo.
        num_photographs: Photographs to search, twice as large as they are: the demo's are small.
        orders: Random orders of the boxes of each; the filter keeps others in each.
    """
    limits = ProposalsConfig()
    random = np.random.default_rng(0)
    paths = sorted(path for path in photographs.rglob("*") if path.suffix in PHOTO_SUFFIXES)
    found = []
    for path in paths[:: -(-len(paths) // num_photographs)]:
        image = decode(path, exif=False, max_pixels=10**8)
        found.append(selective_search(image.repeat(_SCALE, 0).repeat(_SCALE, 1), mode="fast"))
    lists = [random.permutation(boxes) for boxes in found for _ in range(orders)]

    def compiled(boxes: Boxes) -> list[Boxes]:
        return [
            filter_boxes(boxes, min_size_px=size, max_ratio=limits.max_ratio, max_iou=limits.max_iou)
            for size in limits.min_sizes
        ]

    def loop(boxes: Boxes) -> list[list[list[int]]]:
        return [one_at_a_time(boxes, size, limits.max_ratio, limits.max_iou) for size in limits.min_sizes]

    compiled(lists[0])  # compiles
    seconds, reference_seconds, kept, same = 0.0, 0.0, 0, 0
    with one_core():
        for boxes in lists:
            start = time.perf_counter()
            ours = compiled(boxes)
            between = time.perf_counter()
            theirs = loop(boxes)
            reference_seconds += time.perf_counter() - between
            seconds += between - start
            kept += sum(map(len, ours))
            same += [some.tolist() for some in ours] == theirs
    value, reference = len(lists) / seconds, len(lists) / reference_seconds
    return Result(
        name="filter",
        value=value,
        unit="images/s",
        reference=reference,
        reference_name="one box at a time in Python",
        ratio=value / reference,
        better="higher",
        details={
            "lists_per_image": len(limits.min_sizes),
            "boxes_per_image": round(sum(map(len, lists)) / len(lists), 1),
            "kept_per_image": round(kept / len(lists), 1),
            "identical_images": same / len(lists),
            "images": len(lists),
            "coco_minutes": round(_COCO_IMAGES / value / 60, 2),
            "reference_coco_minutes": round(_COCO_IMAGES / reference / 60, 2),
        },
    )


def one_at_a_time(boxes: Boxes, min_size_px: int, max_ratio: float, max_iou: float) -> list[list[int]]:
    """The rule as it is written down; see `univip.proposals.filters`."""
    kept: list[list[int]] = []
    for box in boxes.tolist():
        x, y, w, h = box
        if w < min_size_px or h < min_size_px or w / h > max_ratio or h / w > max_ratio:
            continue
        for left, top, width, height in kept:
            across = min(x + w, left + width) - max(x, left)
            down = min(y + h, top + height) - max(y, top)
            common = max(across, 0) * max(down, 0)
            if common / (w * h + width * height - common) > max_iou:
                break
        else:
            kept.append(box)
    return kept
