"""Graph segmentation (Felzenszwalb and Huttenlocher, 2004) of one colour image, with OpenCV's result.

Neighbouring pixels are joined in the order of their difference w, as long as w is within the tolerance of
both segments, (w of the last join) + k / (pixels); segments smaller than `MIN_SIZE_PX` are then joined to the
nearest neighbour. Blur, differences and sorting do not depend on k and are done once for all of them.

Equal differences. In the first pass their order does not matter: a segment that was open to difference w is
still open to it after a join at w. In the second it can, when two small segments compete for one neighbour.
Then, and only then, the pairs are taken in the order in which C++ sorts them (`sorting.py`).

Shapes: H, W the image, C its channels, P = H x W pixels in rows, S segments, E pairs of neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import compiled
from univip.proposals.sorting import sort_like_cpp, sort_stably

MIN_SIZE_PX = 100  # pixels of a segment, OpenCV's default
_SIGMA = float(np.float32(0.8))  # of the blur; selective search hands it over as a C float

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Items = npt.NDArray[np.uint64]


class Segments(NamedTuple):
    """A segmentation, segments numbered in the order in which rows of pixels meet them."""

    labels: Ints  # [P]
    sizes: Ints  # [S] pixels
    boxes: Ints  # [S, 4] xywh
    neighbours: Ints  # [pairs, 2], smaller number first, in order


class SegmentationGraph:
    """One colour image as a graph, ready to be segmented at any k."""

    def __init__(self, image: npt.NDArray[np.uint8]) -> None:
        """Takes uint8 [H, W, C]."""
        self._height, self._width, _ = image.shape
        blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA, sigmaY=_SIGMA)
        self._blurred = np.ascontiguousarray(blurred.reshape(image.shape))
        self._pairs = sort_stably(_pairs(self._blurred, False))
        self._is_cpp_order = False

    def segment(self, k: float) -> Segments:
        """Segments at one k: larger k, larger segments."""
        num_pixels = self._height * self._width
        parents = np.empty(num_pixels, np.int32)
        if not _join(self._pairs, np.float32(k), self._width, parents, self._is_cpp_order):
            self._pairs = _pairs(self._blurred, True)
            sort_like_cpp(self._pairs, len(self._pairs))
            self._is_cpp_order = True
            _join(self._pairs, np.float32(k), self._width, parents, True)
        labels, sizes, boxes = _label(parents, self._width)
        return Segments(labels, sizes, boxes, _neighbours(labels, self._width, len(sizes)))


@compiled("uint64[::1](float32[:,:,::1], boolean)")
def _pairs(blurred: Floats, both_ways: bool) -> Items:
    """Pairs of neighbours as items to sort: Euclidean distance of the colours, then 4 x pixel + direction.

    Args:
        blurred: [H, W, C].
        both_ways: Each pair twice, in the order in which OpenCV makes them: up, left, down, right of a pixel.
    """
    height, width, channels = blurred.shape
    pairs = np.empty((2 if both_ways else 1) * (height * (width - 1) + (height - 1) * width), np.uint64)
    weight = np.empty(1, np.float32)
    bits = weight.view(np.uint32)
    count = 0
    for row in range(height):
        for column in range(width):
            for direction in range(0 if both_ways else 2, 4):
                other_row = row + (direction == 2) - (direction == 0)
                other_column = column + (direction == 3) - (direction == 1)
                if not (0 <= other_row < height and 0 <= other_column < width):
                    continue
                total = np.float32(0)
                for channel in range(channels):
                    difference = np.float64(
                        blurred[row, column, channel] - blurred[other_row, other_column, channel]
                    )
                    # C++ squares and adds in double, and rounds the sum to float after every channel.
                    total = np.float32(np.float64(total) + difference * difference)
                weight[0] = np.sqrt(total)
                place = np.uint64(4 * (row * width + column) + direction)
                pairs[count] = (np.uint64(bits[0]) << np.uint64(32)) | place
                count += 1
    return pairs


@compiled("int32(int32[::1], int32)")
def _root(parents: Ints, pixel: int) -> int:
    """Root of a pixel's segment; every step halves the way of the next search."""
    parent = parents[pixel]
    while parent >= 0:
        grandparent = parents[parent]
        if grandparent < 0:
            return parent
        parents[pixel] = grandparent
        pixel = grandparent
        parent = parents[pixel]
    return pixel


@compiled("int32(int32[::1], int32, int32)")
def _unite(parents: Ints, first: int, second: int) -> int:
    """Join two roots; returns the root of both, whose entry is minus the number of pixels."""
    if parents[first] > parents[second]:
        first, second = second, first
    parents[first] += parents[second]
    parents[second] = first
    return first


@compiled("boolean(uint64[::1], float32, int32, int32[::1], boolean)")
def _join(pairs: Items, k: float, width: int, parents: Ints, is_cpp_order: bool) -> bool:
    """Both passes of the segmentation.

    Args:
        pairs: Sorted.
        k: See above.
        width: Of the image.
        parents: int32 [P], overwritten: the parent of a pixel, or minus the number of pixels of its tree.
        is_cpp_order: Equal differences are in OpenCV's order.

    Returns:
        False if the result would depend on the order of equal differences, and that is not known.
    """
    parents[:] = -1
    tolerance = np.full(len(parents), k, np.float32)
    offsets = np.array([-width, -1, width, 1], np.int32)
    bits = np.empty(1, np.uint32)
    weights = bits.view(np.float32)
    apart = np.empty_like(pairs)
    num_apart = 0
    for pair in pairs:
        pixel = np.int32((pair & np.uint64(0xFFFFFFFF)) >> np.uint64(2))
        first = _root(parents, pixel)
        second = _root(parents, pixel + offsets[pair & np.uint64(3)])
        if first != second:
            bits[0] = pair >> np.uint64(32)
            weight = weights[0]
            if weight <= tolerance[first] and weight <= tolerance[second]:
                root = _unite(parents, first, second)
                tolerance[root] = weight + k / np.float32(-parents[root])
            else:
                apart[num_apart] = pair
                num_apart += 1

    # Second pass: only pairs with a small segment count, equal ones together.
    partner = np.zeros(len(parents), np.int32)
    seen = np.full(len(parents), -1, np.int32)  # the group in which `partner` was set
    start = 0
    while start < num_apart:
        stop = start + 1
        while stop < num_apart and apart[stop] >> np.uint64(32) == apart[start] >> np.uint64(32):
            stop += 1
        for position in range(start, stop if stop - start > 1 and not is_cpp_order else start):
            pixel = np.int32((apart[position] & np.uint64(0xFFFFFFFF)) >> np.uint64(2))
            first = _root(parents, pixel)
            second = _root(parents, pixel + offsets[apart[position] & np.uint64(3)])
            if first == second or (-parents[first] >= MIN_SIZE_PX and -parents[second] >= MIN_SIZE_PX):
                continue
            if (seen[first] == start and partner[first] != second) or (
                seen[second] == start and partner[second] != first
            ):
                return False
            seen[first] = seen[second] = start
            partner[first], partner[second] = second, first
        for position in range(start, stop):
            pixel = np.int32((apart[position] & np.uint64(0xFFFFFFFF)) >> np.uint64(2))
            first = _root(parents, pixel)
            second = _root(parents, pixel + offsets[apart[position] & np.uint64(3)])
            if first != second and (-parents[first] < MIN_SIZE_PX or -parents[second] < MIN_SIZE_PX):
                _unite(parents, first, second)
        start = stop
    return True


@compiled("Tuple((int32[::1], int32[::1], int32[:,::1]))(int32[::1], int32)")
def _label(parents: Ints, width: int) -> tuple[Ints, Ints, Ints]:
    """Labels [P], sizes [S] and boxes [S, 4] of the trees."""
    count = 0
    for parent in parents:
        count += parent < 0
    labels = np.empty(len(parents), np.int32)
    sizes = np.empty(count, np.int32)
    boxes = np.empty((count, 4), np.int32)  # first and last column and row, until the end
    number = np.full(len(parents), -1, np.int32)
    found = 0
    for pixel in range(len(parents)):
        root = _root(parents, np.int32(pixel))
        row, column = pixel // width, pixel % width
        label = number[root]
        if label < 0:
            label = np.int32(found)
            number[root] = label
            sizes[label] = -parents[root]
            boxes[label, 0] = boxes[label, 2] = column
            boxes[label, 1] = row
            found += 1
        labels[pixel] = label
        boxes[label, 0] = min(boxes[label, 0], column)
        boxes[label, 2] = max(boxes[label, 2], column)
        boxes[label, 3] = row
    boxes[:, 2] += 1 - boxes[:, 0]
    boxes[:, 3] += 1 - boxes[:, 1]
    return labels, sizes, boxes


@compiled("int32[:,::1](int32[::1], int32, int32)")
def _neighbours(labels: Ints, width: int, num_segments: int) -> Ints:
    """Pairs of touching segments.

    OpenCV looks to the left, up and left up of every pixel outside the first row and the first column: pixels
    along these two do not touch each other, so an image of one row or column has no neighbours at all, and
    of the two diagonals only one counts.
    """
    steps = np.array([1, width, width + 1], np.int32)
    starts = np.zeros(num_segments + 1, np.int64)
    seconds = np.empty(0, np.int32)
    for is_filling in (False, True):
        if is_filling:
            total = 0
            for segment in range(num_segments + 1):
                starts[segment], total = total, total + starts[segment]
            seconds = np.empty(total, np.int32)
        for pixel in range(width + 1, len(labels)):
            if pixel % width == 0:
                continue
            label = labels[pixel]
            for step in steps:
                other = labels[pixel - step]
                if other != label:
                    first, second = min(label, other), max(label, other)
                    if is_filling:
                        seconds[starts[first]] = second
                    starts[first] += 1
    # `starts` has moved to the ends of the lists.
    pairs = np.empty((len(seconds), 2), np.int32)
    seen = np.full(num_segments, -1, np.int32)
    count = 0
    begin = 0
    for first in range(num_segments):
        for second in np.sort(seconds[begin : starts[first]]):
            if seen[second] != first:
                seen[second] = first
                pairs[count, 0], pairs[count, 1] = first, second
                count += 1
        begin = starts[first]
    return pairs[:count].copy()
