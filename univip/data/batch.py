"""One micro-batch: as the workers hand it over, and as the method sees it.

Workers crop and resize and draw all parameters; pixels stay uint8 until they are on the device, where they
are augmented in batches. A batch has two large tensors, because each tensor that crosses a process boundary
costs a file descriptor and a memory mapping; the small parts are arrays, which travel by value.

Legend: n images, K instances, S scene edge, I instance edge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from univip.config import InstanceViews
from univip.data.augment import AugmentParameters, augment
from univip.types import Views


class Failure(NamedTuple):
    """A photograph that could not be read; another one took its place."""

    image_id: int
    path: str  # relative to the root of the data
    reason: str  # one of `univip.data.decode.REASONS`


class HostBatch(NamedTuple):
    """A micro-batch on the host."""

    scenes: Tensor  # uint8 [n, 2, 3, S, S]
    instances: Tensor  # uint8 [n, K, 3, I, I]; black where has_instances is False
    has_instances: npt.NDArray[np.bool_]  # [n]
    scene_parameters: AugmentParameters  # 2 n rows: T1 and T2 of each image in turn
    online_parameters: AugmentParameters  # n K rows: T1
    target_parameters: AugmentParameters  # n K rows: T2
    ids: npt.NDArray[np.int64]  # [n] of the images shown, substitutes included
    epochs: npt.NDArray[np.int64]  # [n]
    counts: dict[str, int]  # summed over the images; every batch of a run has the same keys
    failures: list[Failure]
    marks: tuple[int, int]  # of the samples that were planned, of the views that are shown


def make_views(batch: HostBatch, instance_views: InstanceViews, device: torch.device) -> Views:
    """Augment a micro-batch on the device."""
    scenes, instances = (pixels.to(device, non_blocking=True) for pixels in (batch.scenes, batch.instances))
    flat = instances.flatten(0, 1)
    online = augment(flat, batch.online_parameters).view(instances.shape)
    if instance_views is InstanceViews.two:
        target = augment(flat, batch.target_parameters).view(instances.shape)
    else:
        target = online
    return Views(
        scenes=augment(scenes.flatten(0, 1), batch.scene_parameters).view(scenes.shape),
        online_instances=online,
        target_instances=target,
        has_instances=torch.from_numpy(batch.has_instances),
    )
