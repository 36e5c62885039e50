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

from univip.proposals.compiled import Scalar, compiled
from univip.proposals.sorting import sort_like_cpp, sort_stably

MIN_SIZE_PX = 100  # pixels of a segment, OpenCV's default
_SIGMA = float(np.float32(0.8))  # of the blur; selective search hands it over as a C float

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Items = npt.NDArray[np.uint64]

_PLACE = np.uint64(2**32 - 1)  # the half of an item that says whose weight it is


class Segments(NamedTuple):
    """A segmentation, segments numbered in the order in which rows of pixels meet them."""

    labels: Ints  # [P]
    sizes: Ints  # [S] pixels
    boxes: Ints  # [S, 4] xywh
    neighbours: Ints  # [pairs, 2], smaller number first, in order


class SegmentationGraph:
    """One colour image as a graph, ready to be segmented at one k after the other."""

    def __init__(self, image: npt.NDArray[np.uint8]) -> None:
        """Takes uint8 [H, W, C]."""
        self._num_pixels, self._width = image.shape[0] * image.shape[1], image.shape[1]
        self._planes = _blur(image)
        self._pairs = sort_stably(_pairs(self._planes, False))
        self._in_cpp_order: Items | None = None
        # The first pass up to the first pair that the largest k so far refuses: larger ones share it.
        self._parents = np.full(self._num_pixels, -1, np.int32)
        self._last = np.zeros(self._num_pixels, np.float32)
        self._start = 0
        self._largest_k = 0.0

    def segment(self, k: float) -> Segments:
        """Segments at one k, which may not be smaller than in the call before: larger k, larger segments."""
        if k < self._largest_k:
            raise ValueError(f"k must not fall, but comes after {self._largest_k} as {k}")
        self._largest_k = k
        none = np.empty(0, np.uint64)
        self._start, _ = _join(self._pairs, self._start, k, self._width, self._parents, self._last, none)
        parents, apart = self._parents.copy(), np.empty_like(self._pairs[self._start :])
        _, num_apart = _join(self._pairs, self._start, k, self._width, parents, self._last.copy(), apart)
        parents = self._join_small(apart[:num_apart], parents)
        labels, sizes, boxes = _label(parents, self._width)
        return Segments(labels, sizes, boxes, _neighbours(labels, self._width, len(sizes)))

    def _join_small(self, apart: Items, parents: Ints) -> Ints:
        """The second pass, in the order of C++ if that matters."""
        if self._in_cpp_order is None:
            joined = parents.copy()
            if _join_small(apart, self._width, joined, False):
                return joined
            both = _pairs(self._planes, True)
            sort_like_cpp(both, len(both))
            self._in_cpp_order = _first_of_both(both, self._width, self._num_pixels)
        _join_small(_sorted_as(apart, self._in_cpp_order, self._num_pixels), self._width, parents, True)
        return parents


def _blur(image: npt.NDArray[np.uint8]) -> Floats:
    """The blurred colour planes of uint8 [H, W, C], float32 [C, H, W]."""
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), _SIGMA, sigmaY=_SIGMA)
    return np.stack(cv2.split(blurred)).astype(np.float32, copy=False)


@compiled("void(float32[:,:,::1], int64, boolean, float32[::1])")
def _distances(planes: Floats, row: Scalar, is_down: bool, distances: Floats) -> None:
    """Euclidean distance of the colours of a row [W] to their neighbours below, or to the right."""
    channels, _, width = planes.shape
    count = width if is_down else width - 1
    distances[:count] = 0
    for channel in range(channels):
        these = planes[channel, row]
        others = planes[channel, row + 1] if is_down else planes[channel, row, 1:]
        for column in range(count):
            # In floats: a sum in doubles would split differences that are equal for OpenCV.
            difference = these[column] - others[column]
            distances[column] += difference * difference
    for column in range(count):
        distances[column] = np.sqrt(distances[column])


@compiled("uint64(uint32, int64, int64)")
def _item(weight: Scalar, pixel: Scalar, direction: Scalar) -> Scalar:
    return (np.uint64(weight) << np.uint64(32)) | np.uint64(4 * pixel + direction)


@compiled("uint64[::1](float32[:,:,::1], boolean)")
def _pairs(planes: Floats, both_ways: bool) -> Items:
    """Pairs of neighbours as items to sort: distance of the colours, then 4 x pixel + direction.

    Args:
        planes: [C, H, W].
        both_ways: Each pair twice, in the order in which OpenCV makes them: up, left, down, right of a pixel.
    """
    _, height, width = planes.shape
    pairs = np.empty((2 if both_ways else 1) * (height * (width - 1) + (height - 1) * width), np.uint64)
    distances = np.empty((3, width), np.float32)  # up, right, down
    up, right, down = distances.view(np.uint32)
    count = 0
    for row in range(height):
        up[:] = down
        _distances(planes, row, False, distances[1])
        if row < height - 1:
            _distances(planes, row, True, distances[2])
        for column in range(width):
            pixel = row * width + column
            if both_ways and row > 0:
                pairs[count] = _item(up[column], pixel, 0)
                count += 1
            if both_ways and column > 0:
                pairs[count] = _item(right[column - 1], pixel, 1)
                count += 1
            if row < height - 1:
                pairs[count] = _item(down[column], pixel, 2)
                count += 1
            if column < width - 1:
                pairs[count] = _item(right[column], pixel, 3)
                count += 1
    return pairs


@compiled("uint64[::1](uint64[::1], int32, int64)")
def _first_of_both(pairs: Items, width: Scalar, num_pixels: Scalar) -> Items:
    """Each pair as down or right, where it first appears; the second time it can do nothing."""
    seen = np.zeros(4 * num_pixels, np.bool_)
    found = np.empty(len(pairs) // 2, np.uint64)
    count = 0
    for pair in pairs:
        place = np.int64(pair & _PLACE)
        direction = place & 3
        if direction < 2:
            place += 2 - 4 * (1 if direction == 1 else width)
        if not seen[place]:
            seen[place] = True
            found[count] = (pair & ~_PLACE) | np.uint64(place)
            count += 1
    return found


@compiled("uint64[::1](uint64[::1], uint64[::1], int64)")
def _sorted_as(some: Items, all_pairs: Items, num_pixels: Scalar) -> Items:
    """Some of the pairs in the order of all."""
    is_one = np.zeros(4 * num_pixels, np.bool_)
    for pair in some:
        is_one[np.int64(pair & _PLACE)] = True
    found = np.empty_like(some)
    count = 0
    for pair in all_pairs:
        if is_one[np.int64(pair & _PLACE)]:
            found[count] = pair
            count += 1
    return found


@compiled("int32(int32[::1], int32)")
def _root(parents: Ints, pixel: Scalar) -> Scalar:
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
def _unite(parents: Ints, first: Scalar, second: Scalar) -> Scalar:
    """Join two roots; returns the root of both, whose entry is minus the number of pixels."""
    if parents[first] > parents[second]:
        first, second = second, first
    parents[first] += parents[second]
    parents[second] = first
    return first


@compiled("Tuple((int32, int32))(int32[::1], uint64, int32)")
def _roots(parents: Ints, pair: Scalar, width: Scalar) -> tuple[Scalar, Scalar]:
    """Roots of both pixels of a pair."""
    place = np.int32(pair & _PLACE)
    pixel, direction = place >> 2, place & 3
    step = np.int32(1) if direction & 1 else width
    return _root(parents, pixel), _root(parents, pixel + (step if direction & 2 else -step))


@compiled("boolean(uint64[::1], int32, int32[::1], boolean)")
def _join_small(apart: Items, width: Scalar, parents: Ints, is_cpp_order: bool) -> Scalar:
    """The second pass.

    Args:
        apart: Pairs that the first one refused, sorted.
        width: Of the image.
        parents: int32 [P], updated, as after the first pass.
        is_cpp_order: Equal differences are in OpenCV's order.

    Returns:
        False if the result could depend on the order of equal differences, and that is not known.
    """
    seen = np.full(len(parents), -1, np.int64)  # the group that met this root
    partner = np.zeros(len(parents), np.int32)  # and the other root of its pair there
    start = 0
    while start < len(apart):
        stop = start + 1
        while stop < len(apart) and apart[stop] >> np.uint64(32) == apart[start] >> np.uint64(32):
            stop += 1
        if stop - start > 1 and not is_cpp_order:
            is_shared = False  # is there a segment with two possible partners?
            num_large = small_pixels = 0
            for pair in apart[start:stop]:
                roots = _roots(parents, pair, width)
                if roots[0] == roots[1] or max(parents[roots[0]], parents[roots[1]]) <= -MIN_SIZE_PX:
                    continue
                for side in range(2):
                    root, other = roots[side], roots[1 - side]
                    if seen[root] != start:
                        seen[root] = start
                        partner[root] = other
                        if parents[root] <= -MIN_SIZE_PX:
                            num_large += 1
                        else:
                            small_pixels += -int(parents[root])
                    elif partner[root] != other:
                        is_shared = True
            # Small ones that stay small together, around at most one large one: all of them are joined.
            if is_shared and (num_large > 1 or small_pixels >= MIN_SIZE_PX):
                return False
        for pair in apart[start:stop]:
            first, second = _roots(parents, pair, width)
            if first != second and max(parents[first], parents[second]) > -MIN_SIZE_PX:
                _unite(parents, first, second)
        start = stop
    return True


@compiled("Tuple((int64, int64))(uint64[::1], int64, float32, int32, int32[::1], float32[::1], uint64[::1])")
def _join(
    pairs: Items, start: Scalar, k: Scalar, width: Scalar, parents: Ints, last: Floats, apart: Items
) -> tuple[Scalar, Scalar]:
    """The first pass.

    Args:
        pairs: Sorted.
        start: The first pair to look at.
        k: See above.
        width: Of the image.
        parents: int32 [P], updated: the parent of a pixel, or minus the number of pixels of its tree.
        last: float32 [P], updated: the difference at which a tree was last joined, 0 for a single pixel.
        apart: Receives the pairs that are refused; if it has no room at all, the first of them ends the pass.

    Returns:
        The pair that ended the pass, or the number of pairs; the number of refused pairs.
    """
    tolerance = np.empty(len(parents), np.float32)
    for pixel in range(len(parents)):
        tolerance[pixel] = last[pixel] + k / np.float32(max(-parents[pixel], 1))  # used at roots only
    bits = np.empty(1, np.uint32)
    weight = bits.view(np.float32)
    num_apart = 0
    for position in range(start, len(pairs)):
        pair = pairs[position]
        first, second = _roots(parents, pair, width)
        if first != second:
            bits[0] = pair >> np.uint64(32)
            if weight[0] <= tolerance[first] and weight[0] <= tolerance[second]:
                root = _unite(parents, first, second)
                last[root] = weight[0]
                tolerance[root] = weight[0] + k / np.float32(-parents[root])
            elif len(apart) == 0:
                return position, 0
            else:
                apart[num_apart] = pair
                num_apart += 1
    return len(pairs), num_apart


@compiled("Tuple((int32[::1], int32[::1], int32[:,::1]))(int32[::1], int32)")
def _label(parents: Ints, width: Scalar) -> tuple[Ints, Ints, Ints]:
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
        label = int(number[root])
        if label < 0:
            number[root] = label = found
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
def _neighbours(labels: Ints, width: Scalar, num_segments: Scalar) -> Ints:
    """Pairs of touching segments.

    OpenCV looks to the left, up and left up of every pixel outside the first row and the first column: pixels
    along these two do not touch each other, so an image of one row or column has no neighbours at all, and
    of the two diagonals only one counts.
    """
    height = len(labels) // width
    touching = np.empty((3 * len(labels), 2), np.int32)  # memory that is not written to costs nothing
    starts = np.zeros(num_segments + 1, np.int64)
    count = 0
    for row in range(1, height):
        for pixel in range(row * width + 1, (row + 1) * width):
            here = labels[pixel]
            left, up, corner = labels[pixel - 1], labels[pixel - width], labels[pixel - width - 1]
            if here == left and here == up and here == corner:
                continue
            for other in (left, up, corner):
                if other != here:
                    touching[count, 0], touching[count, 1] = min(here, other), max(here, other)
                    starts[touching[count, 0]] += 1
                    count += 1
    total = 0
    for segment in range(num_segments + 1):
        starts[segment], total = total, total + starts[segment]
    seconds = np.empty(total, np.int32)
    for position in range(count):
        first = touching[position, 0]
        seconds[starts[first]] = touching[position, 1]
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
