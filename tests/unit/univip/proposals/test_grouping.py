"""The heap gives the regions of OpenCV's way, sorting before every merge, or says that it cannot know."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from univip.proposals import grouping
from univip.proposals.merging import COLOUR_FILL_TEXTURE_SIZE, FILL, FILL_TEXTURE_SIZE, SIZE
from univip.proposals.regions import Histograms, histograms, texture
from univip.proposals.segmentation import SegmentationGraph, Segments

Image = npt.NDArray[np.uint8]


def parts(image: Image, k: float) -> tuple[Segments, Histograms]:
    segments = SegmentationGraph(image).segment(k)
    return segments, histograms(image, texture(image), segments)


def photograph(name: str) -> Image:
    return cv2.resize(getattr(skimage.data, name)(), (240, 160), interpolation=cv2.INTER_AREA)


def as_list(regions: grouping.Regions) -> list[tuple[int, ...]]:
    return sorted(
        (*box, level) for box, level in zip(regions.boxes.tolist(), regions.levels.tolist(), strict=True)
    )


@pytest.mark.parametrize("strategy", [COLOUR_FILL_TEXTURE_SIZE, FILL_TEXTURE_SIZE, FILL, SIZE])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_both_ways_give_the_same_regions(name: str, strategy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    segments, features = parts(photograph(name), 50)
    found = as_list(grouping.group(segments, features, strategy))

    monkeypatch.setattr(grouping, "_group_by_heap", lambda *_: 0)
    assert found == as_list(grouping.group(segments, features, strategy))
    assert len(found) == 2 * len(segments.sizes) - 1


def test_photographs_do_not_need_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_group_by_sorting", None)  # cannot be called

    for name in ("astronaut", "coffee", "chelsea"):
        grouping.group(*parts(photograph(name), 150), COLOUR_FILL_TEXTURE_SIZE)


def test_equal_similarities_that_compete_are_left_to_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four equal squares: every one of them is as similar to its two neighbours by size.
    image = np.zeros((40, 40, 3), np.uint8)
    image[:20, 20:], image[20:, :20], image[20:, 20:] = 80, 160, 240
    segments, features = parts(image, 1)
    monkeypatch.setattr(grouping, "_group_by_sorting", lambda *_: 7)

    assert len(grouping.group(segments, features, SIZE).boxes) == 7


def test_inputs_are_left_as_they_were() -> None:
    segments, features = parts(photograph("coffee"), 150)
    before = [each.copy() for each in (*segments, *features)]
    grouping.group(segments, features, COLOUR_FILL_TEXTURE_SIZE)

    for old, new in zip(before, (*segments, *features), strict=True):
        np.testing.assert_array_equal(old, new)
