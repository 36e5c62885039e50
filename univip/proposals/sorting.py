"""Sorting by 32-bit weights: stable and fast, or with the order that C++ gives to equal weights.

Items are uint64: the bits of a weight, a float32 that is not negative, in the upper half, so that weights
compare as integers; what the weight belongs to in the lower half. `std::sort` is not stable, and OpenCV's
results depend on the order in which it leaves equal weights. `sort_like_cpp` does the same moves as the
introsort of libstdc++, which OpenCV's wheels for Linux are built with.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import Scalar, compiled

Items = npt.NDArray[np.uint64]

_SMALL = 16  # ranges up to this length are left to the insertion sort at the end


@compiled("uint64[::1](uint64[::1])")
def sort_stably(items: Items) -> Items:
    """Sorted by weight, equal weights in the order before (radix sort: three times 11 bits).

    Returns:
        The sorted items; `items` is overwritten.
    """
    counts = np.zeros((3, 2048), np.int64)
    for item in items:
        weight = item >> np.uint64(32)
        counts[0, weight & np.uint64(2047)] += 1
        counts[1, (weight >> np.uint64(11)) & np.uint64(2047)] += 1
        counts[2, weight >> np.uint64(22)] += 1
    source, target = items, np.empty_like(items)
    for digit in range(3):
        place = counts[digit]
        start = 0
        for value in range(2048):
            count = place[value]
            place[value] = start
            start += count
        shift = np.uint64(32 + 11 * digit)
        for item in source:
            bucket = np.int64((item >> shift) & np.uint64(2047))
            target[place[bucket]] = item
            place[bucket] += 1
        source, target = target, source
    return source


@compiled("boolean(uint64, uint64)")
def _less(first: Scalar, second: Scalar) -> Scalar:
    return (first >> np.uint64(32)) < (second >> np.uint64(32))


@compiled("void(uint64[::1], int64, int64, int64, uint64)")
def _sift(items: Items, start: Scalar, hole: Scalar, length: Scalar, value: Scalar) -> None:
    """Put `value` into the max-heap of `length` items from `start`, whose `hole` is empty."""
    top = hole
    child = hole
    while child < (length - 1) // 2:
        child = 2 * (child + 1)
        if _less(items[start + child], items[start + child - 1]):
            child -= 1
        items[start + hole] = items[start + child]
        hole = child
    if length % 2 == 0 and child == (length - 2) // 2:
        child = 2 * (child + 1)
        items[start + hole] = items[start + child - 1]
        hole = child - 1
    while hole > top and _less(items[start + (hole - 1) // 2], value):
        items[start + hole] = items[start + (hole - 1) // 2]
        hole = (hole - 1) // 2
    items[start + hole] = value


@compiled("void(uint64[::1], int64, int64)")
def _heap_sort(items: Items, start: Scalar, stop: Scalar) -> None:
    """What introsort does with a range whose pivots were bad too often."""
    length = stop - start
    for parent in range((length - 2) // 2, -1, -1):
        _sift(items, start, parent, length, items[start + parent])
    for last in range(stop - 1, start, -1):
        value = items[last]
        items[last] = items[start]
        _sift(items, start, 0, last - start, value)


@compiled("int64(uint64[::1], int64, int64)")
def _partition(items: Items, start: Scalar, stop: Scalar) -> Scalar:
    """Median of three to the front, then split the rest around it; where the right part begins."""
    a, b, c = start + 1, start + (stop - start) // 2, stop - 1
    if _less(items[a], items[b]):
        median = b if _less(items[b], items[c]) else (c if _less(items[a], items[c]) else a)
    else:
        median = a if _less(items[a], items[c]) else (c if _less(items[b], items[c]) else b)
    items[start], items[median] = items[median], items[start]
    pivot = items[start]
    left, right = start + 1, stop
    while True:
        while _less(items[left], pivot):
            left += 1
        right -= 1
        while _less(pivot, items[right]):
            right -= 1
        if left >= right:
            return left
        items[left], items[right] = items[right], items[left]
        left += 1


@compiled("void(uint64[::1], int64)")
def sort_like_cpp(items: Items, length: Scalar) -> None:
    """Sort the first `length` items in place as libstdc++'s `std::sort`, moves of equal ones included."""
    depth = 0
    while length >> (depth + 1):
        depth += 1
    stack = np.empty((128, 3), np.int64)  # start, stop, partitions left
    stack[0, 0], stack[0, 1], stack[0, 2] = 0, length, 2 * depth
    waiting = 1
    while waiting:
        waiting -= 1
        start, stop, left = stack[waiting, 0], stack[waiting, 1], stack[waiting, 2]
        while stop - start > _SMALL:
            if left == 0:
                _heap_sort(items, start, stop)
                break
            left -= 1
            cut = _partition(items, start, stop)
            stack[waiting, 0], stack[waiting, 1], stack[waiting, 2] = cut, stop, left
            waiting += 1
            stop = cut
    for position in range(1, length):
        value = items[position]
        hole = position
        while hole > 0 and _less(value, items[hole - 1]):
            items[hole] = items[hole - 1]
            hole -= 1
        items[hole] = value
