"""Marks: one number for a set of samples, by which two sets can be compared without listing them.

A mark is the sum of 64-bit hashes modulo 2^64, so it does not depend on the order of the samples nor on how
they are divided among ranks and micro-batches: marks of parts add up to the mark of the whole. Two different
batches have the same mark with probability 2^-64.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from univip.types import Boxes

_MODULUS = 2**64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mark_of_samples(epochs: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> int:
    """Mark of some places of the plan: which images, in which epochs; both int64 [n]."""
    words = _mixed(_mixed(epochs.astype(np.uint64)) ^ ids.astype(np.uint64))
    return int(words.sum(dtype=np.uint64))  # wraps around


def mark_of_views(epoch: int, image_id: int, scenes: Boxes, boxes: Boxes) -> int:
    """Mark of what was cut out of one image: scenes [2, 4] and instances [K, 4], xywh."""
    rectangles = np.concatenate([scenes, boxes]).astype("<i4")
    names = struct.pack("<2q", epoch, image_id)
    digest = hashlib.blake2b(names + rectangles.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def add_marks(marks: Iterable[int]) -> int:
    """Mark of the whole, from those of its parts."""
    return sum(marks) % _MODULUS


def to_bytes(mark: int) -> list[int]:
    """Eight numbers below 256, the lowest first, whose sums over many ranks are exact also in fp32."""
    return list(mark.to_bytes(8, "little"))


def from_sums(sums: Iterable[float]) -> int:
    """The mark of the whole, from the sums of `to_bytes` of its parts."""
    return sum(int(number) << (8 * place) for place, number in enumerate(sums)) % _MODULUS


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014) of each word."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
