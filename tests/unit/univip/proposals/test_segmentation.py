"""Segmentation maps and neighbours are OpenCV's, also where equal differences compete."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from univip.proposals import segmentation
from univip.proposals.segmentation import SegmentationGraph, Segments

Image = npt.NDArray[np.uint8]


def opencv_labels(image: Image, k: float) -> npt.NDArray[np.int32]:
    graph = cv2.ximgproc.segmentation.createGraphSegmentation(float(np.float32(0.8)), k, 100)
    return np.asarray(graph.processImage(image), np.int32)


def few_colours(seed: int, height: int = 60, width: int = 90) -> Image:
    """Many equal differences around segments of less than 100 pixels."""
    palette = np.random.default_rng(seed).integers(0, 3, (height // 5, width // 5, 3)) * 60
    return palette.astype(np.uint8).repeat(5, axis=0).repeat(5, axis=1)


@pytest.mark.parametrize("conversion", [cv2.COLOR_RGB2HSV, cv2.COLOR_RGB2Lab, cv2.COLOR_RGB2GRAY])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_segments_of_photographs_are_opencvs(name: str, conversion: int) -> None:
    photograph = cv2.resize(getattr(skimage.data, name)(), (300, 200), interpolation=cv2.INTER_AREA)
    image = cv2.cvtColor(photograph, conversion).reshape(200, 300, -1)
    graph = SegmentationGraph(image)

    for k in (150, 300, 450):
        np.testing.assert_array_equal(graph.segment(k).labels.reshape(200, 300), opencv_labels(image, k))


def test_equal_differences_are_taken_in_opencvs_order() -> None:
    num_exact = 0
    for seed in range(20):
        image = few_colours(seed)
        graph = SegmentationGraph(image)
        for k in (30, 150, 450):
            np.testing.assert_array_equal(graph.segment(k).labels.reshape(60, 90), opencv_labels(image, k))
        num_exact += graph._in_cpp_order is not None

    assert num_exact >= 5  # else the pictures do not show what they are for


def test_cpp_order_holds_every_pair_once() -> None:
    image = cv2.resize(skimage.data.coffee(), (150, 100), interpolation=cv2.INTER_AREA)
    graph = SegmentationGraph(image)
    both = segmentation._pairs(graph._planes, True)
    segmentation.sort_like_cpp(both, len(both))

    once = segmentation._first_of_both(both, 150, 15000)

    np.testing.assert_array_equal(np.sort(once), np.sort(graph._pairs))


def test_k_must_not_fall() -> None:
    graph = SegmentationGraph(few_colours(0))
    graph.segment(300)

    with pytest.raises(ValueError, match="must not fall"):
        graph.segment(150)


def brute_force_neighbours(labels: npt.NDArray[np.int32]) -> list[list[int]]:
    pairs = set()
    for row in range(1, labels.shape[0]):
        for column in range(1, labels.shape[1]):
            here = int(labels[row, column])
            for other in (labels[row, column - 1], labels[row - 1, column], labels[row - 1, column - 1]):
                if other != here:
                    pairs.add((min(here, int(other)), max(here, int(other))))
    return [list(pair) for pair in sorted(pairs)]


def check(segments: Segments, height: int, width: int) -> None:
    labels = segments.labels.reshape(height, width)
    assert segments.neighbours.tolist() == brute_force_neighbours(labels)
    for segment, (size, box) in enumerate(zip(segments.sizes, segments.boxes.tolist(), strict=True)):
        rows, columns = np.nonzero(labels == segment)
        assert size == len(rows)
        x, y = columns.min(), rows.min()
        assert box == [x, y, columns.max() - x + 1, rows.max() - y + 1]


@pytest.mark.parametrize("shape", [(60, 90), (1, 200), (200, 1)])
def test_sizes_boxes_and_neighbours_belong_to_the_labels(shape: tuple[int, int]) -> None:
    image = few_colours(1, 60, 200).reshape(-1, 3)[: shape[0] * shape[1]].reshape(*shape, 3)

    check(SegmentationGraph(np.ascontiguousarray(image)).segment(30), *shape)
