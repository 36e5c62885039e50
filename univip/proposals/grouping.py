"""Hierarchical grouping: the most similar neighbours are merged until none are left; every region is a box.

OpenCV sorts all pairs anew for every merge and takes the last. A heap gives the same pair without sorting,
except between equally similar ones, where OpenCV's choice is that of an unstable sort. Equal pairs that share
no region and no neighbouring regions, and whose merges make no pair as similar as they are, can be merged in
any order with the same result. Otherwise `_group_by_sorting` does as OpenCV does, slower by a few times.

Shapes: S segments, R < 2 S regions: the segments, then one for every merge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import Scalar, compiled, publish
from univip.proposals.merging import STATE, item_of, merge, pair_of, similarity, unite
from univip.proposals.regions import Histograms
from univip.proposals.segmentation import Segments
from univip.proposals.sorting import sort_like_cpp

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Items = npt.NDArray[np.uint64]

_ENDED = np.uint64(2**64 - 1)  # no item: similarities are at most 1


class Regions(NamedTuple):
    """All regions of one hierarchy."""

    boxes: Ints  # [R, 4] xywh
    levels: Ints  # [R] 1 for a segment, else 1 more than the higher of the merged two


def group(segments: Segments, histograms: Histograms, strategy: int) -> Regions:
    """Merge all segments by one of the strategies of `merging.py`."""
    num_segments = len(segments.sizes)
    boxes = np.empty((2 * num_segments, 4), np.int32)
    boxes[:num_segments] = segments.boxes
    levels = np.ones(2 * num_segments, np.int32)

    def run(grouping: Callable[..., int]) -> int:
        rows = histograms.colour, histograms.texture, segments.sizes, segments.boxes
        copies = [each.copy() for each in rows]
        return grouping(*copies, segments.neighbours, len(segments.labels), strategy, boxes, levels)

    num_regions = run(_group_by_heap) or run(_group_by_sorting)
    return Regions(boxes[:num_regions], levels[:num_regions])


@compiled(f"int64({STATE}, int32[:,::1], int64, int64, int32[:,::1], int32[::1])")
def _group_by_sorting(
    colour: Floats,
    texture: Floats,
    sizes: Ints,
    boxes: Ints,
    neighbours: Ints,
    area: Scalar,
    strategy: Scalar,
    region_boxes: Ints,
    levels: Ints,
) -> Scalar:
    """Group with a sort before every merge.

    Args:
        colour: [S, 25 C], of the segments; overwritten.
        texture: [S, 80 C], likewise.
        sizes: [S], likewise.
        boxes: [S, 4], likewise.
        neighbours: [pairs, 2].
        area: Pixels of the image.
        strategy: One of the above.
        region_boxes: [2 S, 4], filled for the segments; receives the others.
        levels: [2 S], likewise.

    Returns:
        Number of regions.
    """
    num_regions = len(sizes)
    rows = np.arange(2 * num_regions).astype(np.int32)  # of the histograms of a region
    seen = np.full(2 * num_regions, -1, np.int32)  # the newest region that has this one for a neighbour
    found = np.empty(2 * num_regions, np.int32)
    count = len(neighbours)  # a merge never makes more pairs than it ends
    ends = neighbours.copy()
    items = np.empty(count, np.uint64)
    free = np.empty(count, np.int64)  # places in `ends`
    num_free = 0
    for pair in range(count):
        items[pair] = item_of(
            similarity(colour, texture, sizes, boxes, area, strategy, ends[pair, 0], ends[pair, 1]), pair
        )
    while count:
        sort_like_cpp(items, count)
        count -= 1
        pair = pair_of(items[count])
        first, second = ends[pair, 0], ends[pair, 1]
        free[num_free] = pair
        num_free += 1
        new = np.int32(num_regions)
        num_regions += 1
        rows[new] = merge(colour, texture, sizes, boxes, rows[first], rows[second])
        unite(region_boxes, first, second, region_boxes[new])
        levels[new] = max(levels[first], levels[second]) + 1
        num_found = kept = 0
        for position in range(count):
            pair = pair_of(items[position])
            start, end = ends[pair, 0], ends[pair, 1]
            if start in (first, second) or end in (first, second):
                other = end if start in (first, second) else start
                if seen[other] != new:
                    seen[other] = new
                    found[num_found] = other
                    num_found += 1
                free[num_free] = pair
                num_free += 1
            else:
                items[kept] = items[position]
                kept += 1
        count = kept
        for other in found[:num_found]:
            num_free -= 1
            pair = free[num_free]
            ends[pair, 0], ends[pair, 1] = new, other
            items[count] = item_of(
                similarity(colour, texture, sizes, boxes, area, strategy, rows[new], rows[other]), pair
            )
            count += 1
    return num_regions


@compiled("void(int32[::1], int32[::1], int32[::1], int32[:,::1], int64)")
def _link(heads: Ints, following: Ints, preceding: Ints, ends: Ints, pair: Scalar) -> None:
    """Put a pair in front of the lists of both its regions, where it has the places 2 x pair and the next."""
    for side in range(2):
        region, place = ends[pair, side], np.int32(2 * pair + side)
        following[place] = heads[region]
        preceding[place] = -1
        if heads[region] >= 0:
            preceding[heads[region]] = place
        heads[region] = place


@compiled("void(int32[::1], int32[::1], int32[::1], int32[:,::1], int64)")
def _unlink(heads: Ints, following: Ints, preceding: Ints, ends: Ints, pair: Scalar) -> None:
    """Take a pair out of the lists of both its regions."""
    for side in range(2):
        place = 2 * pair + side
        after, before = following[place], preceding[place]
        if after >= 0:
            preceding[after] = before
        if before >= 0:
            following[before] = after
        else:
            heads[ends[pair, side]] = after


@compiled("void(uint64[::1], int64)")
def _rise(heap: Items, place: Scalar) -> None:
    """Move an item of a max-heap up to where it belongs."""
    item = heap[place]
    while place > 0 and heap[(place - 1) // 2] < item:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = item


@compiled("void(uint64[::1], int64, int64)")
def _fall(heap: Items, place: Scalar, length: Scalar) -> None:
    """Move an item of a max-heap down to where it belongs."""
    item = heap[place]
    while True:
        child = 2 * place + 1
        if child >= length:
            break
        if child + 1 < length and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= item:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = item


@compiled(f"int64({STATE}, int32[:,::1], int64, int64, int32[:,::1], int32[::1])")
def _group_by_heap(
    colour: Floats,
    texture: Floats,
    sizes: Ints,
    boxes: Ints,
    neighbours: Ints,
    area: Scalar,
    strategy: Scalar,
    region_boxes: Ints,
    levels: Ints,
) -> Scalar:
    """Group with a heap; arguments as above.

    Returns:
        Number of regions, or 0 if they would depend on the order of equal similarities.
    """
    num_regions = len(sizes)
    num_pairs = len(neighbours)
    rows = np.arange(2 * num_regions).astype(np.int32)
    seen = np.full(2 * num_regions, -1, np.int32)
    found = np.empty(2 * num_regions, np.int32)
    tied = np.full(2 * num_regions, -1, np.int32)  # the first new region of the tie that this one is part of
    ends = neighbours.copy()
    current = np.empty(num_pairs, np.uint64)  # item of a pair; the heap also holds items of pairs that ended
    free = np.empty(num_pairs, np.int64)
    num_free = 0
    heads = np.full(2 * num_regions, -1, np.int32)
    following = np.empty(2 * num_pairs, np.int32)
    preceding = np.empty(2 * num_pairs, np.int32)
    heap = np.empty(2 * num_pairs + 1, np.uint64)
    length = 0
    for pair in range(num_pairs):
        _link(heads, following, preceding, ends, pair)
        current[pair] = item_of(
            similarity(colour, texture, sizes, boxes, area, strategy, ends[pair, 0], ends[pair, 1]), pair
        )
        heap[length] = current[pair]
        _rise(heap, length)
        length += 1
    ties = np.empty(num_pairs, np.int64)
    while length:
        # All pairs that are as similar as the most similar one.
        num_ties = 0
        weight = np.uint64(0)
        while length and (num_ties == 0 or heap[0] >> np.uint64(32) == weight):
            item = heap[0]
            length -= 1
            heap[0] = heap[length]
            if length:
                _fall(heap, 0, length)
            pair = pair_of(item)
            # An item can be there twice, if its place was used again for an equally similar pair.
            if current[pair] == item and (num_ties == 0 or ties[num_ties - 1] != pair):
                weight = item >> np.uint64(32)
                ties[num_ties] = pair
                num_ties += 1
        if num_ties > 1:
            mark = np.int32(num_regions)
            for position in range(num_ties):
                for side in range(2):
                    region = ends[ties[position], side]
                    if tied[region] == mark:
                        return 0
                    tied[region] = mark
        oldest = num_regions
        for position in range(num_ties):
            pair = ties[position]
            first, second = ends[pair, 0], ends[pair, 1]
            new = np.int32(num_regions)
            num_regions += 1
            rows[new] = merge(colour, texture, sizes, boxes, rows[first], rows[second])
            unite(region_boxes, first, second, region_boxes[new])
            levels[new] = max(levels[first], levels[second]) + 1
            seen[first] = seen[second] = new
            num_found = 0
            for region in (first, second):
                while heads[region] >= 0:
                    place = heads[region]
                    ended = place // 2
                    other = ends[ended, 1 - place % 2]
                    if seen[other] != new:
                        seen[other] = new
                        found[num_found] = other
                        num_found += 1
                    _unlink(heads, following, preceding, ends, ended)
                    current[ended] = _ENDED
                    free[num_free] = ended
                    num_free += 1
            for other in found[:num_found]:
                if num_ties > 1 and tied[other] == oldest:
                    return 0
                num_free -= 1
                pair = free[num_free]
                ends[pair, 0], ends[pair, 1] = new, other
                _link(heads, following, preceding, ends, pair)
                item = item_of(
                    similarity(colour, texture, sizes, boxes, area, strategy, rows[new], rows[other]), pair
                )
                if num_ties > 1 and item >> np.uint64(32) >= weight:
                    return 0
                current[pair] = item
                if length == len(heap):
                    length = 0
                    for live in range(num_pairs):
                        if current[live] != _ENDED:
                            heap[length] = current[live]
                            _rise(heap, length)
                            length += 1
                else:
                    heap[length] = item
                    _rise(heap, length)
                    length += 1
    return num_regions


publish()  # the last of the compiled modules: by now all of them are imported
