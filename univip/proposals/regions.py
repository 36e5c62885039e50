"""What the segments of one colour image look like: histograms of colour and texture, as OpenCV makes them.

Colour: 25 bins per channel. Texture: per channel the positive and the negative part of four derivatives (x, y
and the same in an image turned by 45 degrees), 10 bins each over the range of that part in the whole image.
A derivative is either positive or negative, so one code per pixel stands for both of its parts; the codes do
not depend on the segments and are made once per colour image.

Where a part is the same in the whole image OpenCV divides 0 by 0, and its conversion of not-a-number to a
byte gives 0: every pixel falls into the first bin.

Shapes: H, W the image, C its channels, P = H x W, S segments.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from univip.proposals.compiled import compiled

_ANGLE = 45.0  # degrees
_DERIVATIVES = 4

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


class TextureCodes(NamedTuple):
    """Derivatives of an image, each as one of 20 codes: bin of the positive part, or 10 + that of the negative."""

    codes: Bytes  # [P, 4, C]
    zero_bins: Bytes  # [4, C, 2] bin that holds 0 in the positive and in the negative part


class Histograms(NamedTuple):
    """Of each segment; every row sums up to about 1."""

    colour: Floats  # [S, 25 C]
    texture: Floats  # [S, 80 C]


def texture_codes(image: Bytes) -> TextureCodes:
    """Codes of the derivatives of uint8 [H, W, C]."""
    height, width, channels = image.shape
    codes = np.empty((height * width, _DERIVATIVES, channels), np.uint8)
    zero_bins = np.empty((_DERIVATIVES, channels, 2), np.uint8)
    for number, derivative in enumerate(_derivatives(image)):
        _encode(derivative.reshape(image.shape), number, codes, zero_bins)
    return TextureCodes(codes, zero_bins)


def histograms(image: Bytes, texture: TextureCodes, labels: Ints, sizes: Ints) -> Histograms:
    """Histograms of the segments of uint8 [H, W, C], given as labels [P] and sizes [S]."""
    channels = image.shape[2]
    pixels = np.ascontiguousarray(image).reshape(-1, channels)
    return Histograms(
        _colour_histograms(pixels, labels, sizes),
        _texture_histograms(texture.codes, texture.zero_bins, labels, sizes),
    )


def _derivatives(image: Bytes) -> list[Floats]:
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
    derivatives = [cv2.Scharr(image, cv2.CV_32F, dx, 1 - dx) for dx in (1, 0)]
    for dx in (1, 0):
        derivative = cv2.Scharr(turned, cv2.CV_32F, dx, 1 - dx)
        derivative = cv2.warpAffine(derivative, turn_back, (left + width, top + height))
        derivatives.append(np.ascontiguousarray(derivative[top:, left:]))
    return derivatives


@compiled("uint8(float32, float32, float32)")
def _bin(value: float, low: float, high: float) -> int:
    """Bin of a value between `low` and `high`: OpenCV stretches to a byte, then cuts bytes into tenths."""
    if not low < high:
        return np.uint8(0)
    span = np.float64(high) - np.float64(low)
    scale = np.float32(255.0 / span)
    shift = np.float32(-255.0 * np.float64(low) / span)
    # One fused multiply-add, as the vector code of OpenCV has it: the product of two floats is exact in double.
    byte = np.rint(np.float32(np.float64(value) * np.float64(scale) + np.float64(shift)))
    return np.uint8(min(max(byte, np.float32(0)), np.float32(255)) / np.float32(25.6))


@compiled("void(float32[:,:,::1], int64, uint8[:,:,::1], uint8[:,:,::1])")
def _encode(derivative: Floats, number: int, codes: Bytes, zero_bins: Bytes) -> None:
    """Fill `codes[:, number]` and `zero_bins[number]` from a derivative [H, W, C]."""
    height, width, channels = derivative.shape
    low = np.full(channels, np.inf, np.float32)
    high = np.full(channels, -np.inf, np.float32)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                value = derivative[row, column, channel]
                low[channel] = min(low[channel], value)
                high[channel] = max(high[channel], value)
    none = np.float32(0)
    for channel in range(channels):
        lowest, highest = low[channel], high[channel]
        # The positive part of what is nowhere below 5 starts at 5, not at 0.
        positive_low, positive_high = max(lowest, none), max(highest, none)
        negative_low, negative_high = min(lowest, none), min(highest, none)
        zero_bins[number, channel, 0] = _bin(none, positive_low, positive_high)
        zero_bins[number, channel, 1] = _bin(none, negative_low, negative_high)
        for row in range(height):
            for column in range(width):
                value = derivative[row, column, channel]
                if value >= none:
                    code = _bin(value, positive_low, positive_high)
                else:
                    code = np.uint8(10) + _bin(value, negative_low, negative_high)
                codes[row * width + column, number, channel] = code


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


@compiled("float32[:,::1](uint8[:,:,::1], uint8[:,:,::1], int32[::1], int32[::1])")
def _texture_histograms(codes: Bytes, zero_bins: Bytes, labels: Ints, sizes: Ints) -> Floats:
    _, derivatives, channels = codes.shape
    counts = np.zeros((len(sizes), derivatives, channels, 20), np.int32)
    for pixel in range(len(labels)):
        for derivative in range(derivatives):
            for channel in range(channels):
                counts[labels[pixel], derivative, channel, codes[pixel, derivative, channel]] += 1
    found = np.empty((len(sizes), 80 * channels), np.float32)
    both = np.empty((2, 10), np.int32)
    for segment in range(len(sizes)):
        total = np.float32(sizes[segment] * 8 * channels)
        for channel in range(channels):
            for derivative in range(derivatives):
                code_counts = counts[segment, derivative, channel]
                both[0] = code_counts[:10]
                both[1] = code_counts[10:]
                num_negative = both[1].sum()
                # What is in one part is 0 in the other.
                both[0, zero_bins[derivative, channel, 0]] += num_negative
                both[1, zero_bins[derivative, channel, 1]] += sizes[segment] - num_negative
                for part in range(2):
                    for place in range(10):
                        target = ((channel * derivatives + derivative) * 2 + part) * 10 + place
                        found[segment, target] = np.float32(both[part, place]) / total
    return found
