"""What the segments of one colour image look like: histograms of colour and texture, as OpenCV makes them.

Colour: 25 bins per channel. Texture: per channel the positive and the negative part of four derivatives (x, y
and the same in an image turned by 45 degrees), 10 bins each over the range of that part in the whole image.
A derivative is either positive or negative, and its bin rises with its value, so one code stands for both of
its parts. The codes do not depend on the segments: they are made once per colour image.

Where a part is the same in the whole image OpenCV divides 0 by 0, and its conversion of not-a-number to a
byte gives 0: every pixel falls into the first bin.

Shapes: H, W the image, C its channels, P = H x W, S segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import Scalar, compiled
from univip.proposals.segmentation import Segments

_ANGLE = 45.0  # degrees
_DERIVATIVES = 4

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class Texture(NamedTuple):
    """Derivatives of an image in 19 codes.

    0 - 8 are the bins of negative values below the last, 10 - 18 those of positive values above the first;
    9 is the rest, zero included.
    """

    codes: Bytes  # [4 C, P], channel by channel
    has_negative: npt.NDArray[np.bool_]  # [4 C]


class Histograms(NamedTuple):
    """Of each segment; every row sums up to about 1."""

    colour: Floats  # [S, 25 C]
    texture: Floats  # [S, 80 C]


def texture(image: Bytes) -> Texture:
    """Codes of the derivatives of uint8 [H, W, C]."""
    height, width, channels = image.shape
    codes = np.empty((channels, _DERIVATIVES, height * width), np.uint8)
    has_negative = np.empty((channels, _DERIVATIVES), np.bool_)
    for number, derivative in enumerate(_derivatives(image)):
        for channel, plane in enumerate(cv2.split(derivative)):
            low, high = plane.min(), plane.max()
            has_negative[channel, number] = low < 0
            _encode(np.ravel(plane), _thresholds(low, high), codes[channel, number])
    return Texture(codes.reshape(-1, height * width), has_negative.reshape(-1))


def histograms(image: Bytes, texture: Texture, segments: Segments) -> Histograms:
    """Histograms of the segments of uint8 [H, W, C]."""
    pixels = image.reshape(-1, image.shape[2])
    return Histograms(
        _colour_histograms(pixels, segments.labels, segments.sizes),
        _texture_histograms(texture.codes, texture.has_negative, segments.labels, segments.sizes),
    )


def _derivatives(image: Bytes) -> Iterator[Any]:
    """x, y, and both again in the turned image, turned back: float32 [H, W(, C)]."""
    height, width = image.shape[:2]
    center = width / 2, height / 2
    turned_width, turned_height = cv2.RotatedRect(center, (width, height), _ANGLE).boundingRect()[2:]
    turn = cv2.getRotationMatrix2D(center, _ANGLE, 1.0)
    turn[:, 2] += turned_width / 2 - center[0], turned_height / 2 - center[1]
    turned = cv2.warpAffine(image, turn, (turned_width, turned_height))
    # Not exactly the way back: OpenCV takes whole numbers for this centre, and does not move long images.
    turn_back = cv2.getRotationMatrix2D((turned_width // 2, turned_height // 2), -_ANGLE, 1.0)
    left, top = max(0, (turned_width - width) // 2), max(0, (turned_height - height) // 2)
    for dx in (1, 0):
        yield cv2.Scharr(image, cv2.CV_32F, dx, 1 - dx)
    for dx in (1, 0):
        derivative = cv2.Scharr(turned, cv2.CV_32F, dx, 1 - dx)
        derivative = cv2.warpAffine(derivative, turn_back, (left + width, top + height))
        yield derivative[top:, left:]


@compiled("uint8(float32, float32, float32)")
def _bin(value: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """Bin of a value between `low` and `high`: OpenCV stretches to a byte, then cuts bytes into tenths."""
    if not low < high:
        return np.uint8(0)
    span = np.float64(high) - np.float64(low)
    scale = np.float32(255.0 / span)
    shift = np.float32(-255.0 * np.float64(low) / span)
    # A fused multiply-add, as in the vector code of OpenCV: the product of two floats is exact in double.
    byte = np.rint(np.float32(np.float64(value) * np.float64(scale) + np.float64(shift)))
    return np.uint8(min(max(byte, np.float32(0)), np.float32(255)) / np.float32(25.6))


@compiled("float32[::1](float32, float32)")
def _thresholds(low: Scalar, high: Scalar) -> Floats:
    """The 18 values at which the code of a derivative between `low` and `high` rises by one."""
    thresholds = np.empty(18, np.float32)
    for part in range(2):
        # The positive part of what is nowhere below 5 starts at 5, not at 0.
        start = max(low, np.float32(0)) if part else min(low, np.float32(0))
        stop = max(high, np.float32(0)) if part else min(high, np.float32(0))
        for number in range(9):
            below, above = start, stop
            if start == stop:  # the same everywhere: first bin of this part, see above
                above = np.float32(np.inf if part else -np.inf)
            while start < stop:
                middle = np.float32((np.float64(below) + np.float64(above)) / 2)
                if middle in (below, above):
                    break
                if _bin(middle, start, stop) > number:
                    above = middle
                else:
                    below = middle
            thresholds[9 * part + number] = above
    return thresholds


@compiled("void(float32[::1], float32[::1], uint8[::1])")
def _encode(plane: Floats, thresholds: Floats, codes: Bytes) -> None:
    """Number of thresholds that each value [P] reaches; a few thousand at a time stay in the cache."""
    for start in range(0, len(plane), 4096):
        values, found = plane[start : start + 4096], codes[start : start + 4096]
        found[:] = 0
        for threshold in thresholds:
            for place in range(len(values)):
                found[place] += np.uint8(values[place] >= threshold)


@compiled("float32[:,::1](uint8[:,::1], int32[::1], int32[::1])")
def _colour_histograms(pixels: Bytes, labels: Ints, sizes: Ints) -> Floats:
    channels = pixels.shape[1]
    counts = np.zeros((len(sizes), 25 * channels), np.int32)
    for pixel in range(len(labels)):
        for channel in range(channels):
            counts[labels[pixel], 25 * channel + (np.int64(pixels[pixel, channel]) * 25 >> 8)] += 1
    found = np.empty((len(sizes), 25 * channels), np.float32)
    for segment in range(len(sizes)):
        total = np.float32(0)  # rounded above 2^24, as OpenCV's is
        for place in range(25 * channels):
            total += np.float32(counts[segment, place])
        for place in range(25 * channels):
            found[segment, place] = np.float32(counts[segment, place]) / total
    return found


@compiled("float32[:,::1](uint8[:,::1], boolean[::1], int32[::1], int32[::1])")
def _texture_histograms(
    codes: Bytes, has_negative: npt.NDArray[np.bool_], labels: Ints, sizes: Ints
) -> Floats:
    num_planes = len(codes)
    counts = np.zeros((len(sizes), num_planes, 19), np.int32)
    for plane in range(num_planes):
        for pixel in range(len(labels)):
            counts[labels[pixel], plane, codes[plane, pixel]] += 1
    found = np.empty((len(sizes), num_planes, 2, 10), np.float32)
    for segment in range(len(sizes)):
        size = sizes[segment]
        total = np.float32(size * 2 * num_planes)
        for plane in range(num_planes):
            positive = negative = 0
            for number in range(9):
                in_negative, in_positive = counts[segment, plane, number], counts[segment, plane, 10 + number]
                found[segment, plane, 1, number] = np.float32(in_negative) / total
                found[segment, plane, 0, 1 + number] = np.float32(in_positive) / total
                negative += in_negative
                positive += in_positive
            # What is in one part is 0 in the other: the lowest positive and the highest negative value.
            found[segment, plane, 0, 0] = np.float32(size - positive) / total
            found[segment, plane, 1, 9] = np.float32(size - negative) / total
            if not has_negative[plane]:
                found[segment, plane, 1, 0], found[segment, plane, 1, 9] = found[segment, plane, 1, 9], 0
    return found.reshape(len(sizes), -1)
