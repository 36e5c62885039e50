"""What the boxes of a data set are like, before anything is trained on them.

Boxes per image come from the whole store. How often a training would have to invent boxes comes from its own
first samples: *the fallback rate is the share of samples in which no trial found K proposals inside the
overlap, so that at least one box was random*. Samples are drawn as training draws them, rectangles only: the
first `num_samples` of the sample plan of a seed, which in a large data set are as many images of epoch 0 and
in a small one go on to the next epochs. The margin is the 95 % interval of Wilson.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from univip.config import ProposalsConfig, ViewsConfig
from univip.data.draws import SampleKey
from univip.data.images import ImageIndex
from univip.data.plan import SamplePlan
from univip.data.proposals import RAW, ProposalStore, column
from univip.data.views import ViewStatistics, sample_views

NUM_SAMPLES = 2000
_Z = 1.96


@dataclass(frozen=True)
class BoxStatistics:
    """Facts about a store.

    Attributes:
        num_boxes: K.
        counts: Boxes per image that could be searched, int64 [N], by list: `raw`, `min_96`, `min_64`.
        failed: Images without boxes, by reason.
        samples: How the first samples came about.
    """

    num_boxes: int
    counts: dict[str, npt.NDArray[np.int64]]
    failed: dict[str, int]
    samples: list[ViewStatistics]

    @property
    def trials(self) -> npt.NDArray[np.int64]:
        """Trials of the samples that found K proposals, int64 [S']."""
        return np.array([s.trials for s in self.samples if not (s.random_boxes or s.too_small)], np.int64)

    def to_json(self) -> dict[str, Any]:
        """Everything that is told, as `univip proposals stats --json` prints it."""
        total = len(self.samples)
        return {
            "images": sum(self.failed.values()) + len(self.counts[RAW]),
            "failed": self.failed,
            "num_boxes": self.num_boxes,
            "boxes_per_image": {name: self._spread(counts) for name, counts in self.counts.items()},
            "samples": {
                "number": total,
                "fallback_rate": rate(sum(s.random_boxes > 0 for s in self.samples), total),
                "fallback_margin": margin(sum(s.random_boxes > 0 for s in self.samples), total),
                "random_box_share": rate(
                    sum(s.random_boxes for s in self.samples),
                    self.num_boxes * sum(not s.too_small for s in self.samples),
                ),
                "too_small_rate": rate(sum(s.too_small for s in self.samples), total),
                "mean_trials": float(np.mean([s.trials for s in self.samples])) if total else 0.0,
            },
        }

    def _spread(self, counts: npt.NDArray[np.int64]) -> dict[str, float]:
        if not len(counts):
            return {}
        low, middle, high = np.percentile(counts, [5, 50, 95]).tolist()
        return {
            "total": int(counts.sum()),
            "mean": float(counts.mean()),
            "least": int(counts.min()),
            "p5": low,
            "median": middle,
            "p95": high,
            "most": int(counts.max()),
            "share_below_k": float((counts < self.num_boxes).mean()),
            "share_without": float((counts == 0).mean()),
        }


def measure(
    index: ImageIndex,
    store: ProposalStore,
    views: ViewsConfig,
    proposals: ProposalsConfig,
    *,
    seed: int,
    num_samples: int = NUM_SAMPLES,
) -> BoxStatistics:
    """Look at a store, and at the first samples that a training with this seed would make of it.

    Args:
        index: The photographs.
        store: Their boxes.
        views: Of the training: K, trials, policy.
        proposals: Limits of the boxes, which random ones obey.
        seed: Of the training.
        num_samples: How many; images that could not be searched are left out.
    """
    failed = store.failed()
    lost = np.isin(store.ids, [image_id for ids in failed.values() for image_id in ids])
    names = [RAW, *(column(size) for size in sorted(store.min_sizes, reverse=True))]
    samples = []
    for epoch, row in np.stack(SamplePlan(len(index), num_samples, seed).batch(0), 1).tolist():
        if lost[row]:
            continue
        image_id = int(index.ids[row])
        width, height = index.sizes[row].tolist()
        boxes = {size: store.filtered(image_id, size) for size in store.min_sizes}
        key = SampleKey(seed, epoch, image_id)
        sampled = sample_views(
            (width, height),
            boxes,
            key=key,
            views=views,
            max_ratio=proposals.max_ratio,
            max_iou=proposals.max_iou,
        )
        samples.append(sampled.statistics)
    return BoxStatistics(
        num_boxes=views.num_instances,
        counts={name: store.counts(name)[~lost] for name in names},
        failed={reason: len(ids) for reason, ids in failed.items()},
        samples=samples,
    )


def rate(number: int, total: int) -> float:
    """A share; 0 of nothing."""
    return number / total if total else 0.0


def margin(number: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    share, spread = number / total, _Z * _Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6)
