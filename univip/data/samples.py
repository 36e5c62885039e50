"""From a place in the plan to pixels: decode once, choose rectangles, crop and resize, draw the parameters.

Everything here is a function of (seed, epoch, image id), so a sample can be made again anywhere. A photograph
that cannot be read is named and replaced by another one, chosen by a keyed draw; the substitute is exactly
the sample that its own image would be in that epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch

from univip.config import DataConfig, ProposalsConfig, ViewsConfig
from univip.data.augment import NUM_DRAWS, T1, T2, AugmentParameters, concatenate, draw_parameters
from univip.data.batch import Failure, HostBatch
from univip.data.decode import REASONS, decode
from univip.data.draws import Draws, Purpose, SampleKey
from univip.data.images import ImageIndex
from univip.data.marks import add_marks, mark_of_samples, mark_of_views
from univip.data.proposals import ProposalStore
from univip.data.views import SampledViews, sample_views
from univip.errors import DataError, ImageError, UnivipError
from univip.types import Boxes, Image

MAX_SUBSTITUTES = 10


class Sample(NamedTuple):
    """One sample on the host; shapes as in `HostBatch`, without n."""

    row: int  # of the image index
    image_id: int
    epoch: int
    views: SampledViews
    scenes: npt.NDArray[np.uint8]  # [2, 3, S, S]
    instances: npt.NDArray[np.uint8]  # [K, 3, I, I]
    scene_parameters: AugmentParameters
    online_parameters: AugmentParameters
    target_parameters: AugmentParameters
    failures: list[Failure]  # of the photographs it stands in for


@dataclass(frozen=True)
class SampleReader:
    """Makes samples of one data set. A copy in another process maps the same files.

    Attributes:
        data: Root of the photographs, and the largest one that is decoded.
        index: The photographs.
        store: Their proposals; None for methods without instances (`views.num_instances` = 0).
        proposals: Limits of the boxes in the store, which random boxes obey as well.
        views: Geometry and sizes.
        seed: Of the run.
    """

    data: DataConfig
    index: ImageIndex
    store: ProposalStore | None
    proposals: ProposalsConfig
    views: ViewsConfig
    seed: int

    def batch(self, epochs: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> HostBatch:
        """The samples of some places in the plan, in order.

        Raises:
            DataError: So many photographs cannot be read that no substitute was found.
            UnivipError: The folder of photographs has gone away.
        """
        samples = [self.sample(int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
        return HostBatch(
            scenes=torch.from_numpy(np.stack([sample.scenes for sample in samples])),
            instances=torch.from_numpy(np.stack([sample.instances for sample in samples])),
            has_instances=np.array([len(sample.views.boxes) > 0 for sample in samples]),
            scene_parameters=concatenate([sample.scene_parameters for sample in samples]),
            online_parameters=concatenate([sample.online_parameters for sample in samples]),
            target_parameters=concatenate([sample.target_parameters for sample in samples]),
            ids=np.array([sample.image_id for sample in samples], np.int64),
            epochs=epochs,
            counts=_counts(samples),
            failures=[failure for sample in samples for failure in sample.failures],
            marks=(
                mark_of_samples(epochs, self.index.ids[rows]),
                add_marks(
                    mark_of_views(sample.epoch, sample.image_id, sample.views.scenes, sample.views.boxes)
                    for sample in samples
                ),
            ),
        )

    def sample(self, epoch: int, row: int) -> Sample:
        """The sample of image `row` in `epoch`, or of its substitute."""
        photo, row, failures = self._photo_or_substitute(epoch, row)
        image_id = int(self.index.ids[row])
        key = SampleKey(self.seed, epoch, image_id)
        views = sample_views(
            (photo.shape[1], photo.shape[0]),
            self._proposals(image_id),
            key=key,
            views=self.views,
            max_ratio=self.proposals.max_ratio,
            max_iou=self.proposals.max_iou,
        )
        num_instances = self.views.num_instances
        instances = np.zeros((num_instances, 3, self.views.instance_size, self.views.instance_size), np.uint8)
        for place, box in enumerate(views.boxes):
            instances[place] = _crop(photo, box, self.views.instance_size)
        first, second = np.split(Draws(key, Purpose.augment_scenes).uniform(2, NUM_DRAWS), 2)
        online = Draws(key, Purpose.augment_online_instances).uniform(num_instances, NUM_DRAWS)
        target = Draws(key, Purpose.augment_target_instances).uniform(num_instances, NUM_DRAWS)
        return Sample(
            row=row,
            image_id=image_id,
            epoch=epoch,
            views=views,
            scenes=np.stack([_crop(photo, box, self.views.scene_size) for box in views.scenes]),
            instances=instances,
            scene_parameters=concatenate([draw_parameters(T1, first), draw_parameters(T2, second)]),
            online_parameters=draw_parameters(T1, online),
            target_parameters=draw_parameters(T2, target),
            failures=failures,
        )

    def photo(self, row: int) -> Image:
        """The pixels of one photograph.

        Raises:
            ImageError: It cannot be used.
        """
        width, height = (int(edge) for edge in self.index.sizes[row])
        path = Path(self.data.root) / self.index.path(row)
        return decode(path, exif=self.index.exif, max_pixels=self.data.max_pixels, size=(width, height))

    def _photo_or_substitute(self, epoch: int, row: int) -> tuple[Image, int, list[Failure]]:
        failures: list[Failure] = []
        for candidate in self._candidates(epoch, row):
            try:
                return self.photo(candidate), candidate, failures
            except ImageError as error:
                image_id = int(self.index.ids[candidate])
                failures.append(Failure(image_id, self.index.path(candidate), error.reason))
        root = Path(self.data.root)
        if not root.is_dir() or not any(root.iterdir()):
            # A file system that went away may come back: no reason to give the run up.
            raise UnivipError("`data.root` cannot be reached.", where=str(root), fix="mount it, then resume")
        tried = ", ".join(f"{failure.path} ({failure.reason})" for failure in failures[:3])
        raise DataError(
            f"`data.root` must hold usable images, but {len(failures)} in a row are not: {tried}, ...",
            where=self.data.root,
            fix="restore the photographs, or index the ones that are left in a new run",
        )

    def _candidates(self, epoch: int, row: int) -> Iterator[int]:
        yield row
        draws = Draws(SampleKey(self.seed, epoch, int(self.index.ids[row])), Purpose.substitute)
        for _ in range(MAX_SUBSTITUTES):
            yield draws.integer(len(self.index))

    def _proposals(self, image_id: int) -> dict[int, Boxes]:
        if self.store is None:
            return {}
        return {size: self.store.filtered(image_id, size) for size in self.store.min_sizes}


def _crop(photo: Image, box: npt.NDArray[np.int32], edge: int) -> npt.NDArray[np.uint8]:
    """A rectangle of the photograph, resized to uint8 [3, edge, edge].

    Pillow's bicubic filter widens with the reduction (no aliasing), works in fixed point (the same bytes on
    every machine) and clamps to 0 .. 255 by itself.
    """
    x, y, w, h = (int(number) for number in box)
    crop = PIL.Image.fromarray(photo[y : y + h, x : x + w])
    resized = crop.resize((edge, edge), PIL.Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def _counts(samples: Sequence[Sample]) -> dict[str, int]:
    """What happened, for the journal; always the same keys, because ranks add them up by position."""
    statistics = [sample.views.statistics for sample in samples]
    counts = {
        "images": len(samples),
        "too_small": sum(some.too_small for some in statistics),
        "fallback": sum(some.random_boxes > 0 for some in statistics),
        "random_boxes": sum(some.random_boxes for some in statistics),
        "trials": sum(some.trials for some in statistics),
        "draws": sum(some.draws for some in statistics),
        "anchored": sum(some.anchored for some in statistics),
        "identical_scenes": sum(some.identical_scenes for some in statistics),
    }
    reasons = [failure.reason for sample in samples for failure in sample.failures[:1]]
    return counts | {f"substituted_{reason}": reasons.count(reason) for reason in REASONS}
