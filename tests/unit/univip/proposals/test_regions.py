"""Histograms are OpenCV's: so are the intersections that its strategies compute from them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from univip.proposals.regions import histograms, texture
from univip.proposals.segmentation import Segments

Image = npt.NDArray[np.uint8]


def cells(height: int, width: int, edge: int = 7) -> Segments:
    """Squares for segments."""
    across = -(-width // edge)
    labels = (np.arange(height)[:, None] // edge * across + np.arange(width) // edge).astype(np.int32)
    sizes = np.bincount(labels.ravel()).astype(np.int32)
    none = np.empty((0, 2), np.int32)
    return Segments(labels.ravel(), sizes, np.zeros((len(sizes), 4), np.int32), none)


def photograph(height: int, width: int) -> Image:
    return cv2.cvtColor(cv2.resize(skimage.data.coffee(), (width, height)), cv2.COLOR_RGB2HSV)


def ramp() -> Image:
    """A derivative that is nowhere zero or negative inside, and another that is zero everywhere."""
    return np.tile(np.arange(0, 120, 2, dtype=np.uint8)[None, :, None], (50, 1, 3))


IMAGES = {
    "photograph": photograph(90, 120),
    "wide": photograph(40, 150),
    "tall": photograph(150, 40),
    "one row": photograph(1, 60),
    "one channel": np.ascontiguousarray(photograph(90, 120)[:, :, 2:]),
    "constant": np.full((50, 60, 3), 7, np.uint8),
    "ramp": ramp(),
    "ramp down": np.ascontiguousarray(ramp()[:, ::-1]),
}


@pytest.mark.parametrize("name", IMAGES)
def test_intersections_are_opencvs_to_the_last_bit(name: str) -> None:
    image = IMAGES[name]
    segments = cells(*image.shape[:2])
    found = histograms(image, texture(image), segments)
    labels, sizes = segments.labels.reshape(image.shape[:2]), segments.sizes[:, None]
    module = cv2.ximgproc.segmentation
    strategies = {
        "colour": (found.colour, module.createSelectiveSearchSegmentationStrategyColor()),
        "texture": (found.texture, module.createSelectiveSearchSegmentationStrategyTexture()),
    }
    rng = np.random.default_rng(0)

    for rows, strategy in strategies.values():
        strategy.setImage(image, labels, sizes)
        for first, second in rng.integers(0, len(rows), (100, 2)).tolist():
            expected = strategy.get(first, second)
            total = np.cumsum(np.minimum(rows[first], rows[second]), dtype=np.float32)[-1]
            assert total == np.float32(expected)


def test_a_part_that_is_the_same_everywhere_falls_into_the_first_bin() -> None:
    image = IMAGES["constant"]
    found = histograms(image, texture(image), cells(50, 60))

    # Of x and y; turned by 45 degrees, even this image has edges: what lies around it is black.
    bins = found.texture.reshape(-1, 3, 8, 10)[:, :, :4]
    assert (bins[..., 0] == np.float32(1 / 24)).all()
    assert (bins[..., 1:] == 0).all()
