"""Similarity of two regions and their merge, in the order and precision of OpenCV's sums.

The state of a hierarchy is a row per segment: histograms of colour and texture, size and box. A merged region
keeps its own in the smaller of the two rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import Scalar, compiled

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# Which similarities are averaged.
COLOUR_FILL_TEXTURE_SIZE, FILL_TEXTURE_SIZE, FILL, SIZE = range(4)

STATE = "float32[:,::1], float32[:,::1], int32[::1], int32[:,::1]"


@compiled("float32(float32[:,::1], int32, int32)")
def _intersection(histograms: Floats, first: Scalar, second: Scalar) -> Scalar:
    """Sum of the smaller of each two bins, in order: floats are rounded after every addition."""
    total = np.float32(0)
    for place in range(histograms.shape[1]):
        total += min(histograms[first, place], histograms[second, place])
    return total


@compiled("void(int32[:,::1], int32, int32, int32[::1])")
def unite(boxes: Ints, first: Scalar, second: Scalar, united: Ints) -> None:
    """The smallest box around two."""
    for axis in range(2):
        start = min(boxes[first, axis], boxes[second, axis])
        stop = max(boxes[first, axis] + boxes[first, axis + 2], boxes[second, axis] + boxes[second, axis + 2])
        united[axis], united[axis + 2] = start, stop - start


@compiled(f"float32({STATE}, int64, int64, int32, int32)")
def similarity(
    colour: Floats,
    texture: Floats,
    sizes: Ints,
    boxes: Ints,
    area: Scalar,
    strategy: Scalar,
    first: Scalar,
    second: Scalar,
) -> Scalar:
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


@compiled(f"int32({STATE}, int32, int32)")
def merge(colour: Floats, texture: Floats, sizes: Ints, boxes: Ints, first: Scalar, second: Scalar) -> Scalar:
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
    unite(boxes, kept, other, boxes[kept])
    return kept


@compiled("int64(uint64)")
def pair_of(item: Scalar) -> Scalar:
    """The pair whose similarity an item is."""
    return np.int64(item & np.uint64(2**32 - 1))


@compiled("uint64(float32, int64)")
def item_of(similarity: Scalar, pair: Scalar) -> Scalar:
    """Similarities are not negative, so their bits sort like them."""
    bits = np.empty(1, np.float32)
    bits[0] = similarity
    return (np.uint64(bits.view(np.uint32)[0]) << np.uint64(32)) | np.uint64(pair)
