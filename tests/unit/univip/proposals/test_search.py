"""The set of boxes is OpenCV's, and their order depends on nothing but the key."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from univip.data.decode import decode
from univip.errors import ConfigError
from univip.proposals.search import pinned_order, selective_search
from univip.types import Boxes, Image


def scene(seed: int, height: int = 60, width: int = 80) -> Image:
    """Rectangles and noise: enough regions for a few dozen boxes."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(12):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + rng.integers(5, 30), x : x + rng.integers(5, 40)] = rng.integers(0, 256, 3)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def opencv_set(image: Image, mode: str) -> set[tuple[int, ...]]:
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    methods = {"single": "SingleStrategy", "fast": "SelectiveSearchFast", "quality": "SelectiveSearchQuality"}
    getattr(search, f"switchTo{methods[mode]}")()
    return {tuple(map(int, box)) for box in search.process()}


def as_set(boxes: Boxes) -> set[tuple[int, ...]]:
    assert boxes.dtype == np.int32
    found = {tuple(box) for box in boxes.tolist()}
    assert len(found) == len(boxes)
    return found


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_set_of_boxes_is_opencvs(mode: str, seed: int) -> None:
    image = scene(seed)

    assert as_set(selective_search(image, mode=mode)) == opencv_set(image, mode)


def test_colour_order_matters_and_is_right() -> None:
    image = scene(2)

    assert opencv_set(image, "fast") != opencv_set(image[:, :, ::-1].copy(), "fast")
    assert as_set(selective_search(image, mode="fast")) == opencv_set(image, "fast")


@pytest.mark.slow
def test_the_set_of_boxes_is_opencvs_on_photographs(real_data: Path) -> None:
    folder = real_data / "dev_coco" / "images" / "train2017"

    for number, path in enumerate(sorted(folder.iterdir())):
        image = decode(path, exif=False, max_pixels=10_000_000)
        mode = "fast" if number % 32 == 0 else "single"
        assert as_set(selective_search(image, mode=mode, key=number)) == opencv_set(image, mode), path.name


def test_the_order_does_not_depend_on_earlier_work() -> None:
    image = scene(3)
    first = selective_search(image, mode="fast", key=5)
    selective_search(scene(4), mode="single")

    np.testing.assert_array_equal(selective_search(image, mode="fast", key=5), first)


def test_other_keys_give_other_orders_of_the_same_set() -> None:
    image = scene(5)
    first, second = selective_search(image, key=1), selective_search(image, key=2**63 - 1)

    assert as_set(first) == as_set(second)
    assert first.tolist() != second.tolist()


def test_the_order_is_pinned_to_these_golden_values() -> None:
    boxes = np.array([[i, 0, 2**i, 2**i] for i in range(10)], np.int32)

    orders = [pinned_order(boxes, key=key)[:, 0].tolist() for key in (0, 139, 2**63 - 1)]

    assert orders == [
        [0, 5, 1, 2, 3, 4, 6, 8, 7, 9],
        [0, 1, 5, 9, 2, 6, 4, 3, 8, 7],
        [2, 4, 1, 0, 3, 5, 6, 7, 8, 9],
    ]


@settings(deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.integers(1, 50)] * 4), max_size=20, unique=True),
    shuffle=st.randoms(use_true_random=False),
    key=st.integers(0, 2**63 - 1),
)
def test_the_order_does_not_depend_on_the_order_before(
    boxes: list[tuple[int, ...]], shuffle: object, key: int
) -> None:
    shuffled = list(boxes)
    shuffle.shuffle(shuffled)  # type: ignore[attr-defined]
    orders = [pinned_order(np.array(some, np.int32).reshape(-1, 4), key=key) for some in (boxes, shuffled)]

    np.testing.assert_array_equal(orders[0], orders[1])
    assert as_set(orders[0]) == set(boxes)


def test_small_boxes_mostly_come_first() -> None:
    # Of two boxes a and b times as large, a precedes with probability 1 - (a / b)^(1/4) / 2.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 160, 160]], np.int32)

    small_first = np.mean([pinned_order(boxes, key=key)[0, 2] == 10 for key in range(4000)])

    assert small_first == pytest.approx(1 - 0.25 / 2, abs=0.02)


@pytest.mark.parametrize("mode", ["single", "fast", "quality"])
@pytest.mark.parametrize("shape", [(40, 50), (1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_image_is_one_box(mode: str, shape: tuple[int, int], value: int) -> None:
    image = np.full((*shape, 3), value, np.uint8)

    assert selective_search(image, mode=mode).tolist() == [[0, 0, shape[1], shape[0]]]


def test_a_gray_image_gives_boxes() -> None:
    gray = scene(6)[:, :, :1].repeat(3, axis=2)

    assert as_set(selective_search(gray)) == opencv_set(gray, "fast")


def test_boxes_lie_inside_the_image() -> None:
    boxes = selective_search(scene(7, 63, 63), mode="fast")

    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 63).all()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be single, fast or quality, but is 'slow'"):
        selective_search(scene(0), mode="slow")


def test_opencv_without_contrib_is_answered_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "ximgproc")

    with pytest.raises(ConfigError, match="contrib modules") as caught:
        selective_search(scene(0))

    assert "opencv-contrib-python-headless" in caught.value.fix
