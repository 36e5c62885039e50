"""Geometry of one sample: two scenes, what both show, and K boxes inside it (paper algorithm 1).

Rectangles first, pixels once: a rejected pair of scenes costs arithmetic, not resizing. Rectangles are
whole pixels of the original photograph, xywh. One *draw* is a pair of random-resized-crop rectangles. It
counts as a *trial* if the two differ and both edges of their overlap hold `min_overlap` and the smallest box;
the first trial with K proposals inside its overlap is taken. Draws that are no trials do not count against
`trials`, so `max_draws` bounds the search as a whole.

If no trial has K proposals, the one with the most is filled up with random boxes that obey the limits of the
proposals. If no draw is a trial (panoramas, photographs hardly larger than a box), the scenes are built
around a random square.

`MinSizePolicy` says which proposals a trial may use, given lists of 96 and 64 px, each filtered from the raw
boxes. nested: the 96 list, topped up from the 64 list with boxes that overlap none of it by more than
`max_iou`. image: the 96 list if it has K boxes at all, else the 64 list. two_phase: `trials` with the 96
list, then as many more with the 64 list. smallest, largest: one list only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from univip.config import MinSizePolicy, ViewsConfig
from univip.data.draws import Draws, Purpose, SampleKey
from univip.types import Boxes

ATTEMPTS = 10  # to fit a crop of random area and ratio into the photograph
CROP_RATIO = 4 / 3  # of the widest crop; the narrowest has the inverse
CANDIDATES = 100  # random boxes looked at before the one that overlaps least is taken

Floats = npt.NDArray[np.float64]
Rectangles = npt.NDArray[np.int64]  # [..., 4] xywh


class ViewStatistics(NamedTuple):
    """How a sample came about."""

    draws: int  # pairs of scenes drawn until the search ended
    trials: int  # of these, pairs whose overlap could hold a box
    inside: int  # proposals that the chosen overlap offered
    random_boxes: int  # of the K boxes, drawn for want of proposals
    anchored: bool  # no draw was of use: scenes built around a random square
    too_small: bool  # the photograph cannot hold a box: scenes only
    identical_scenes: bool  # both scenes are one rectangle: no other one fits


class SampledViews(NamedTuple):
    """Rectangles of one sample, xywh in pixels of the original photograph."""

    scenes: Boxes  # [2, 4]
    overlap: Boxes  # [4]; may be without area where there are no boxes
    boxes: Boxes  # [K, 4] in random order; [0, 4] if the photograph is too small
    statistics: ViewStatistics


class _Pair(NamedTuple):
    """Two scenes and what their overlap offers."""

    scenes: Rectangles  # [2, 4]
    overlap: Rectangles  # [4]
    proposals: list[Rectangles]  # inside the overlap, one array for each list in use, the best list first
    draws: int
    trials: int

    @property
    def worth(self) -> tuple[int, int]:
        """Proposals on offer, then area in px: where there are equally many, random boxes want room."""
        return sum(map(len, self.proposals)), int(self.overlap[2] * self.overlap[3])


def sample_views(
    size: tuple[int, int],
    boxes: Mapping[int, Boxes],
    *,
    key: SampleKey,
    views: ViewsConfig,
    max_ratio: float = 3.0,
    max_iou: float = 0.5,
) -> SampledViews:
    """Choose the scenes and boxes of one sample: a pure function of its arguments.

    Args:
        size: Width and height of the photograph, px.
        boxes: Filtered proposals by least edge in px; read only if `views.num_instances` is positive.
        key: Names the sample.
        views: K, trials and limits. With K = 0 the scenes need not overlap (BYOL).
        max_ratio: Longer over shorter edge of a random box at most, as in the filter of the proposals.
        max_iou: Overlap that random boxes avoid where they can, as in the filter of the proposals.
    """
    num_boxes = views.num_instances
    if num_boxes == 0:
        return _scenes_only(size, key, views, too_small=False)
    least = max(boxes) if views.min_size_policy is MinSizePolicy.largest else min(boxes)
    edge = max(views.min_overlap, least)
    if min(size) < edge:
        return _scenes_only(size, key, views, too_small=True)

    phases = _phases(boxes, num_boxes, views.min_size_policy)
    found = _search(size, phases, edge, key, views, max_iou)
    pair = found or _anchored_pair(size, edge, key, views, phases[-1], max_iou)
    draws = Draws(key, Purpose.instances)
    ranked = [some[draws.permutation(len(some))] for some in pair.proposals]
    chosen = np.concatenate(ranked)[:num_boxes]
    missing = num_boxes - len(chosen)
    for _ in range(missing):
        box = _random_box(pair.overlap, chosen, least, max_ratio, max_iou, draws)
        chosen = np.concatenate([chosen, box[None]])
    # The scene-instance loss reads the boxes in this order, which must not tell where one came from.
    chosen = chosen[draws.permutation(num_boxes)]
    return _sampled(pair, chosen, random_boxes=missing, anchored=found is None, too_small=False)


def _scenes_only(
    size: tuple[int, int], key: SampleKey, views: ViewsConfig, *, too_small: bool
) -> SampledViews:
    no_boxes = np.empty((0, 4), np.int64)
    found = _search(size, [[]], 0, key, views, max_iou=1.0)
    pair = found or _anchored_pair(size, min(size), key, views, [], max_iou=1.0)
    return _sampled(pair, no_boxes, random_boxes=0, anchored=found is None, too_small=too_small)


def _sampled(
    pair: _Pair, boxes: Rectangles, *, random_boxes: int, anchored: bool, too_small: bool
) -> SampledViews:
    statistics = ViewStatistics(
        draws=pair.draws,
        trials=pair.trials,
        inside=pair.worth[0],
        random_boxes=random_boxes,
        anchored=anchored,
        too_small=too_small,
        identical_scenes=not _differ(pair.scenes),
    )
    return SampledViews(
        pair.scenes.astype(np.int32), pair.overlap.astype(np.int32), boxes.astype(np.int32), statistics
    )


def _phases(boxes: Mapping[int, Boxes], num_boxes: int, policy: MinSizePolicy) -> list[list[Rectangles]]:
    """The lists in use, the best first, for each phase of the search."""
    lists = [boxes[size].astype(np.int64) for size in sorted(boxes, reverse=True)]
    match policy:
        case MinSizePolicy.nested:
            return [lists]
        case MinSizePolicy.image:
            return [[next((some for some in lists if len(some) >= num_boxes), lists[-1])]]
        case MinSizePolicy.two_phase:
            return [[some] for some in lists]
        case MinSizePolicy.smallest:
            return [lists[-1:]]
        case MinSizePolicy.largest:
            return [lists[:1]]


def _search(
    size: tuple[int, int],
    phases: Sequence[Sequence[Rectangles]],
    edge: int,
    key: SampleKey,
    views: ViewsConfig,
    max_iou: float,
) -> _Pair | None:
    """The first pair with enough proposals, else the one worth most; None if no draw is a trial."""
    pairs = _scene_pairs(size, Draws(key, Purpose.scenes), views)
    overlaps = _intersection(pairs[:, 0], pairs[:, 1])
    usable = np.flatnonzero(_differ(pairs) & (overlaps[:, 2:] >= edge).all(-1))
    best: _Pair | None = None
    trials = draws = 0
    for lists in phases:
        for draw in usable[trials : trials + views.trials]:
            trials, draws = trials + 1, int(draw) + 1
            offered = _inside(lists, overlaps[draw], views.num_instances, max_iou)
            pair = _Pair(pairs[draw], overlaps[draw], offered, draws, trials)
            if not lists or pair.worth[0] >= views.num_instances:
                return pair
            if best is None or pair.worth > best.worth:
                best = pair
    return best and best._replace(draws=draws, trials=trials)


def _scene_pairs(size: tuple[int, int], draws: Draws, views: ViewsConfig) -> Rectangles:
    """Random-resized-crop rectangles [max_draws, 2, 4].

    Area and ratio are random; where ten attempts do not fit, the largest centre crop of legal ratio is taken.
    All draws at once: an array operation costs about as much for a hundred as for one.
    """
    width, height = size
    uniform = draws.uniform(2 * ATTEMPTS + 2, views.max_draws, 2)
    scales, ratios, (across, down) = uniform[:ATTEMPTS], uniform[ATTEMPTS:-2], uniform[-2:]
    areas = width * height * (views.min_scale + (1 - views.min_scale) * scales)
    ratios = CROP_RATIO ** (2 * ratios - 1)
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.argmax(0)[None]
    w, h = np.take_along_axis(widths, first, 0)[0], np.take_along_axis(heights, first, 0)[0]
    x, y = np.floor(across * (width - w + 1)), np.floor(down * (height - h + 1))
    rectangles: Rectangles = np.stack([x, y, w, h], -1).astype(np.int64)
    rectangles[~fits.any(0)] = _centre_crop(size)
    return rectangles


def _centre_crop(size: tuple[int, int]) -> Rectangles:
    width, height = size
    w, h = min(width, round(height * CROP_RATIO)), min(height, round(width * CROP_RATIO))
    return np.array([(width - w) // 2, (height - h) // 2, w, h])


def _anchored_pair(
    size: tuple[int, int],
    edge: int,
    key: SampleKey,
    views: ViewsConfig,
    lists: Sequence[Rectangles],
    max_iou: float,
) -> _Pair:
    """Crops of legal ratio around one random square of `edge` px; different ones if the photograph allows."""
    width, height = size
    draws = Draws(key, Purpose.anchored_scenes)
    square = draws.integer(width - edge + 1), draws.integer(height - edge + 1)

    def scene() -> list[int]:
        h = _between(edge, min(height, 4 * width // 3), draws)
        w = _between(max(edge, -(-3 * h // 4)), min(width, 4 * h // 3), draws)
        x, y = (
            _between(max(0, corner + edge - side), min(corner, end - side), draws)
            for corner, side, end in zip(square, (w, h), size, strict=True)
        )
        return [x, y, w, h]

    scenes = np.array([scene(), scene()])
    for _ in range(CANDIDATES):
        if _differ(scenes):
            break
        scenes[1] = scene()
    overlap = _intersection(scenes[0], scenes[1])
    offered = _inside(lists, overlap, views.num_instances, max_iou)
    return _Pair(scenes, overlap, offered, draws=views.max_draws, trials=0)


def _random_box(
    region: Rectangles, taken: Rectangles, least: int, max_ratio: float, max_iou: float, draws: Draws
) -> Rectangles:
    """A box in `region` with the limits of a proposal: one that `taken` allows, else the least overlapping.

    Whole-pixel bounds are rounded inwards, so that the ratio never exceeds `max_ratio`.
    """
    x, y, width, height = (int(edge) for edge in region)
    widest = min(width, math.floor(height * max_ratio))
    w = least + draws.integers(np.full(CANDIDATES, widest - least + 1))
    lowest = np.clip(np.ceil(w / max_ratio), least, height).astype(np.int64)
    highest = np.minimum(np.floor(w * max_ratio), height).astype(np.int64)
    h = lowest + draws.integers(highest - lowest + 1)
    across, down = draws.integers(width - w + 1), draws.integers(height - h + 1)
    candidates: Rectangles = np.stack([x + across, y + down, w, h], -1)
    worst = iou(candidates, taken).max(1, initial=0.0)
    allowed = np.flatnonzero(worst <= max_iou)
    box: Rectangles = candidates[allowed[0] if len(allowed) else worst.argmin()]
    return box


def _inside(lists: Sequence[Rectangles], region: Rectangles, enough: int, max_iou: float) -> list[Rectangles]:
    """Boxes inside `region`, from each list; a later list only tops up, with boxes that fit those before."""
    corner, end = region[:2], region[:2] + region[2:]
    found: list[Rectangles] = []
    for boxes in lists:
        held = boxes[(boxes[:, :2] >= corner).all(1) & (boxes[:, :2] + boxes[:, 2:] <= end).all(1)]
        for better in found:
            held = held[(iou(held, better) <= max_iou).all(1)]
        found.append(held)
        if sum(map(len, found)) >= enough:
            break
    return found


def _intersection(one: Rectangles, other: Rectangles) -> Rectangles:
    """Common part of rectangles [..., 4]; without area (w or h of 0) if there is none."""
    corner = np.maximum(one[..., :2], other[..., :2])
    end = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    return np.concatenate([corner, np.maximum(end - corner, 0)], -1)


def iou(boxes: Rectangles, others: Rectangles) -> Floats:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4]."""
    common = _intersection(boxes[:, None], others[None])[..., 2:].prod(-1)
    result: Floats = common / (boxes[:, None, 2:].prod(-1) + others[None, :, 2:].prod(-1) - common)
    return result


def _differ(pairs: Rectangles) -> npt.NDArray[np.bool_]:
    """Whether the two scenes of pairs [..., 2, 4] are different rectangles."""
    result: npt.NDArray[np.bool_] = (pairs[..., 0, :] != pairs[..., 1, :]).any(-1)
    return result


def _between(low: int, high: int, draws: Draws) -> int:
    return low + draws.integer(high - low + 1)
