"""Hierarchical grouping: the two most similar neighbours are merged until none are left; every region is a box.

OpenCV sorts all pairs anew for every merge and takes the last. A heap gives the same pair without sorting,
except between equally similar ones, where OpenCV's choice is that of an unstable sort. Equal pairs that share
no region and no neighbouring regions, and whose merges make no pair as similar as they are, can be merged in
any order with the same result. Otherwise `_group_by_sorting` does as OpenCV does, slower by a few times.

Shapes: S segments, R <= 2 S regions: the segments, then one for every merge. A merged region keeps its
histograms in the row of the smaller of the two numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import compiled, publish
from univip.proposals.regions import Histograms
from univip.proposals.segmentation import Segments
from univip.proposals.sorting import sort_like_cpp

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Items = npt.NDArray[np.uint64]

# Which similarities are averaged; the numbers are known to `_similarity`.
COLOUR_FILL_TEXTURE_SIZE, FILL_TEXTURE_SIZE, FILL, SIZE = range(4)

_ENDED = np.uint64(2**64 - 1)  # no item: similarities are at most 1

_STATE = "float32[:,::1], float32[:,::1], int32[::1], int32[:,::1]"


class Regions(NamedTuple):
    """All regions of one hierarchy."""

    boxes: Ints  # [R, 4] xywh
    levels: Ints  # [R] 1 for a segment, else 1 more than the higher of the merged two


def group(segments: Segments, histograms: Histograms, strategy: int) -> Regions:
    """Merge all segments by one of the strategies above."""
    for grouping in (_group_by_heap, _group_by_sorting):
        num_segments = len(segments.sizes)
        boxes = np.empty((2 * num_segments, 4), np.int32)
        boxes[:num_segments] = segments.boxes
        levels = np.ones(2 * num_segments, np.int32)
        num_regions = grouping(
            histograms.colour.copy(),
            histograms.texture.copy(),
            segments.sizes.copy(),
            segments.boxes.copy(),
            segments.neighbours,
            len(segments.labels),
            strategy,
            boxes,
            levels,
        )
        if num_regions:
            break
    return Regions(boxes[:num_regions], levels[:num_regions])


@compiled("float32(float32[:,::1], int32, int32)")
def _intersection(histograms: Floats, first: int, second: int) -> float:
    """Sum of the smaller of each two bins, in order: floats are rounded after every addition."""
    total = np.float32(0)
    for place in range(histograms.shape[1]):
        total += min(histograms[first, place], histograms[second, place])
    return total


@compiled("void(int32[:,::1], int32, int32, int32[::1])")
def _unite(boxes: Ints, first: int, second: int, united: Ints) -> None:
    """The smallest box around two."""
    for axis in range(2):
        start = min(boxes[first, axis], boxes[second, axis])
        stop = max(boxes[first, axis] + boxes[first, axis + 2], boxes[second, axis] + boxes[second, axis + 2])
        united[axis], united[axis + 2] = start, stop - start


@compiled(f"float32({_STATE}, int64, int64, int32, int32)")
def _similarity(
    colour: Floats, texture: Floats, sizes: Ints, boxes: Ints, area: int, strategy: int, first: int, second: int
) -> float:
    """Similarity of two rows, in the order and precision of OpenCV's sums; `area` is that of the image."""
    zero, one = np.float32(0), np.float32(1)
    both = sizes[first] + sizes[second]
    size = max(min(one - np.float32(both) / np.float32(area), one), zero)
    if strategy == SIZE:
        return size
    width = max(boxes[first, 0] + boxes[first, 2], boxes[second, 0] + boxes[second, 2])
    width -= min(boxes[first, 0], boxes[second, 0])
    height = max(boxes[first, 1] + boxes[first, 3], boxes[second, 1] + boxes[second, 3])
    height -= min(boxes[first, 1], boxes[second, 1])
    fill = max(min(one - np.float32(width * height - both) / np.float32(area), one), zero)
    if strategy == FILL:
        return fill
    if strategy == COLOUR_FILL_TEXTURE_SIZE:
        quarter = np.float32(0.25)
        total = quarter * _intersection(colour, first, second)
        total += quarter * fill
        total += quarter * _intersection(texture, first, second)
        return total + quarter * size
    third = np.float32(0.3333)  # OpenCV divides by the sum of these weights
    total = third * fill
    total += third * _intersection(texture, first, second)
    total += third * size
    return total / (third + third + third)


@compiled(f"int32({_STATE}, int32, int32)")
def _merge(colour: Floats, texture: Floats, sizes: Ints, boxes: Ints, first: int, second: int) -> int:
    """Merge two rows into the smaller one; returns it."""
    kept, other = min(first, second), max(first, second)
    kept_size, other_size = np.float32(sizes[kept]), np.float32(sizes[other])
    total = np.float32(sizes[kept] + sizes[other])
    for histograms in (colour, texture):
        for place in range(histograms.shape[1]):
            histograms[kept, place] = (
                histograms[kept, place] * kept_size + histograms[other, place] * other_size
            ) / total
    sizes[kept] += sizes[other]
    _unite(boxes, kept, other, boxes[kept])
    return kept


@compiled("uint64(float32, int64)")
def _item(similarity: float, pair: int) -> int:
    """Similarities are not negative, so their bits sort like them."""
    bits = np.empty(1, np.float32)
    bits[0] = similarity
    return (np.uint64(bits.view(np.uint32)[0]) << np.uint64(32)) | np.uint64(pair)


@compiled(f"int64({_STATE}, int32[:,::1], int64, int64, int32[:,::1], int32[::1])")
def _group_by_sorting(
    colour: Floats,
    texture: Floats,
    sizes: Ints,
    boxes: Ints,
    neighbours: Ints,
    area: int,
    strategy: int,
    region_boxes: Ints,
    levels: Ints,
) -> int:
    """Group with a sort before every merge.

    Args:
        colour: [S, :] histograms; like texture, sizes [S] and boxes [S, 4] overwritten by those of merged regions.
        texture: See colour.
        sizes: See colour.
        boxes: See colour.
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
        items[pair] = _item(
            _similarity(colour, texture, sizes, boxes, area, strategy, ends[pair, 0], ends[pair, 1]), pair
        )
    while count:
        sort_like_cpp(items, count)
        count -= 1
        pair = np.int64(items[count] & np.uint64(0xFFFFFFFF))
        first, second = ends[pair, 0], ends[pair, 1]
        free[num_free] = pair
        num_free += 1
        new = np.int32(num_regions)
        num_regions += 1
        rows[new] = _merge(colour, texture, sizes, boxes, rows[first], rows[second])
        _unite(region_boxes, first, second, region_boxes[new])
        levels[new] = max(levels[first], levels[second]) + 1
        num_found = kept = 0
        for position in range(count):
            pair = np.int64(items[position] & np.uint64(0xFFFFFFFF))
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
            items[count] = _item(
                _similarity(colour, texture, sizes, boxes, area, strategy, rows[new], rows[other]), pair
            )
            count += 1
    return num_regions


@compiled("void(int32[::1], int32[::1], int32[::1], int32[:,::1], int64)")
def _link(heads: Ints, following: Ints, preceding: Ints, ends: Ints, pair: int) -> None:
    """Put a pair at the front of the lists of both its regions; place 2 x pair + side is its place in them."""
    for side in range(2):
        region, place = ends[pair, side], np.int32(2 * pair + side)
        following[place] = heads[region]
        preceding[place] = -1
        if heads[region] >= 0:
            preceding[heads[region]] = place
        heads[region] = place


@compiled("void(int32[::1], int32[::1], int32[::1], int32[:,::1], int64)")
def _unlink(heads: Ints, following: Ints, preceding: Ints, ends: Ints, pair: int) -> None:
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
def _rise(heap: Items, place: int) -> None:
    """Move an item of a max-heap up to where it belongs."""
    item = heap[place]
    while place > 0 and heap[(place - 1) // 2] < item:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = item


@compiled("void(uint64[::1], int64, int64)")
def _fall(heap: Items, place: int, length: int) -> None:
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


@compiled(f"int64({_STATE}, int32[:,::1], int64, int64, int32[:,::1], int32[::1])")
def _group_by_heap(
    colour: Floats,
    texture: Floats,
    sizes: Ints,
    boxes: Ints,
    neighbours: Ints,
    area: int,
    strategy: int,
    region_boxes: Ints,
    levels: Ints,
) -> int:
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
        current[pair] = _item(
            _similarity(colour, texture, sizes, boxes, area, strategy, ends[pair, 0], ends[pair, 1]), pair
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
            pair = np.int64(item & np.uint64(0xFFFFFFFF))
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
            rows[new] = _merge(colour, texture, sizes, boxes, rows[first], rows[second])
            _unite(region_boxes, first, second, region_boxes[new])
            levels[new] = max(levels[first], levels[second]) + 1
            seen[first] = seen[second] = new
            num_found = 0
            for region in (first, second):
                while heads[region] >= 0:
                    place = heads[region]
                    pair = np.int64(place // 2)
                    other = ends[pair, 1 - place % 2]
                    if seen[other] != new:
                        seen[other] = new
                        found[num_found] = other
                        num_found += 1
                    _unlink(heads, following, preceding, ends, pair)
                    current[pair] = _ENDED
                    free[num_free] = pair
                    num_free += 1
            for other in found[:num_found]:
                if num_ties > 1 and tied[other] == oldest:
                    return 0
                num_free -= 1
                pair = free[num_free]
                ends[pair, 0], ends[pair, 1] = new, other
                _link(heads, following, preceding, ends, pair)
                item = _item(
                    _similarity(colour, texture, sizes, boxes, area, strategy, rows[new], rows[other]), pair
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
