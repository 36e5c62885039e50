"""Random draws that depend on names alone: (seed, epoch, image id, purpose) gives always the same numbers.

No generator state lives anywhere, so a sample looks the same at any world size, in any worker and after
any restart. Each purpose has its own stream: drawing more for one never shifts another.

Words are the raw 64-bit output of Philox 4x64-10 (Salmon et al. 2011) in counter order. Numbers are mapped
from words here, because NumPy may change the streams of its distributions between releases.
"""

from __future__ import annotations

import hashlib
import struct
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BLOCK_WORDS = 64


class Purpose(IntEnum):
    """What a stream is for. The numbers enter the key: add new ones, never reuse or reorder."""

    permutation = 0
    scenes = 1
    anchored_scenes = 2
    instances = 3
    augment_scenes = 4
    augment_online_instances = 5
    augment_target_instances = 6
    substitute = 7


class SampleKey(NamedTuple):
    """The three integers that any sample can be rendered again from."""

    seed: int
    epoch: int
    image_id: int


class Draws:
    """One stream of draws.

    The 128-bit Philox key is BLAKE2b of the four names as little-endian int64. NumPy counts up before it
    makes four words, so the first counter is 1.
    """

    def __init__(self, key: SampleKey, purpose: Purpose) -> None:
        names = struct.pack("<4q", *key, purpose)
        digest = hashlib.blake2b(names, digest_size=16).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest, "little"))
        self._words = np.empty(0, np.uint64)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` raw words."""
        if count > len(self._words):
            more = self._philox.random_raw(max(count - len(self._words), _BLOCK_WORDS))
            self._words = np.concatenate([self._words, more])
        taken, self._words = self._words[:count], self._words[count:]
        return taken

    def uniform(self, *shape: int) -> npt.NDArray[np.float64]:
        """Uniform numbers in [0, 1): the top 53 bits of one word each."""
        words = self.words(int(np.prod(shape)))
        return (words >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def integers(self, bounds: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Integers uniform in [0, bound), one for each bound, without bias (bounds of at least 1)."""
        limits = np.asarray(bounds, np.int64).astype(np.uint64)
        flat = limits.reshape(-1)
        # 2^64 mod bound words are one too many for equal shares; words below that are drawn again.
        excess = (~flat + np.uint64(1)) % flat
        words = self.words(flat.size).copy()
        while (rejected := words < excess).any():
            words[rejected] = self.words(int(rejected.sum()))
        return (words % flat).astype(np.int64).reshape(limits.shape)

    def integer(self, bound: int) -> int:
        """One integer uniform in [0, bound)."""
        return int(self.integers(bound))

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """A random order of 0 .. count - 1: that of as many words; of equal ones the earlier is first."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)
