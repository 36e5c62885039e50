"""Which image is sample p, and which rank holds it: pure functions of the seed.

The plan is one endless sequence of samples: epoch after epoch, each a permutation of all images. Data step d
takes the samples d G .. d G + G - 1, so batches cross epoch borders, no image is dropped, and resuming needs
nothing but d.

Legend: N images, G global batch, W ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from univip.data.draws import Draws, Purpose, SampleKey
from univip.errors import ConfigError

Slice = tuple[int, int]  # start, stop


@dataclass(frozen=True)
class SamplePlan:
    """The order of all samples of a run."""

    num_images: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("num_images", self.num_images), ("train.global_batch", self.global_batch)):
            if value < 1:
                raise ConfigError(f"`{name}` must be at least 1, but is {value}.", where="the sample plan")

    def batch(self, data_step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The samples of one data step.

        Args:
            data_step: Position in the plan, from 0.

        Returns:
            Epochs int64 [G] and image indices int64 [G].
        """
        samples = np.arange(
            data_step * self.global_batch, (data_step + 1) * self.global_batch, dtype=np.int64
        )
        epochs, places = np.divmod(samples, self.num_images)
        indices = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            indices[inside] = _permutation(self.num_images, self.seed, epoch)[places[inside]]
        return epochs, indices


@lru_cache(maxsize=2)  # a batch may cross from one epoch to the next
def _permutation(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    order = Draws(SampleKey(seed, epoch, 0), Purpose.permutation).permutation(num_images)
    order.flags.writeable = False
    return order


def slices(global_batch: int, world_size: int) -> list[Slice]:
    """The contiguous part of the global batch that each rank holds; sizes differ by one at most.

    Raises:
        ConfigError: There are more ranks than images in a batch.
    """
    if world_size > global_batch:
        raise ConfigError(
            f"The world size must be at most `train.global_batch` = {global_batch}, but is {world_size}.",
            where="the sample plan",
            fix=f"start at most {global_batch} ranks, or set train.global_batch={world_size} or more",
        )
    return _cut(0, global_batch, world_size)


def micro_batches(global_batch: int, world_size: int, max_images_per_rank: int) -> list[list[Slice]]:
    """Cut each rank's slice into micro-batches of at most `max_images_per_rank` images.

    Every rank runs the same number of micro-batches, none of them empty, because ranks meet in each of them.

    Returns:
        For each rank its (start, stop) within the global batch, in order.

    Raises:
        ConfigError: No such cut exists.
    """
    if max_images_per_rank < 1:
        raise ConfigError(
            f"`train.max_images_per_rank` must be at least 1, but is {max_images_per_rank}.",
            where="the sample plan",
            fix="train.max_images_per_rank=1",
        )
    ranks = slices(global_batch, world_size)
    sizes = [stop - start for start, stop in ranks]
    count = -(-max(sizes) // max_images_per_rank)
    if count > min(sizes):  # happens only for micro-batches of one image on uneven slices
        enough = -(-max(sizes) // min(sizes))
        raise ConfigError(
            f"`train.max_images_per_rank` must be at least {enough} where {world_size} ranks share "
            f"{global_batch} images, but is {max_images_per_rank}: some rank would miss a micro-batch.",
            where="the sample plan",
            fix=f"train.max_images_per_rank={enough}",
        )
    return [_cut(start, stop, count) for start, stop in ranks]


def _cut(start: int, stop: int, count: int) -> list[Slice]:
    borders = [start + (stop - start) * part // count for part in range(count + 1)]
    return list(pairwise(borders))
