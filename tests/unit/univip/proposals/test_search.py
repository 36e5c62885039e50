"""The set of boxes is OpenCV's with either engine, and their order depends on nothing but the key."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from univip.data.decode import decode
from univip.errors import ConfigError
from univip.proposals.search import pinned_order, ranked_order, selective_search
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


MODES = ["single", "fast", "quality"]
ENGINES = ["fast", "opencv"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_set_of_boxes_is_opencvs(engine: str, mode: str, seed: int) -> None:
    image = scene(seed)

    assert as_set(selective_search(image, mode=mode, engine=engine)) == opencv_set(image, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 2), (3, 7), (1, 60), (60, 1), (2, 90), (90, 2), (40, 130), (130, 40)]
)
def test_small_and_long_images_give_opencvs_boxes(mode: str, shape: tuple[int, int]) -> None:
    # Beyond 1 : 2.4 the image turned by 45 degrees is shorter than the image.
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)

    assert as_set(selective_search(image, mode=mode)) == opencv_set(image, mode)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    block=st.integers(1, 8),
    colours=st.integers(1, 256),
    mode=st.sampled_from(MODES),
)
def test_images_of_few_colours_give_opencvs_boxes(
    seed: int, height: int, width: int, block: int, colours: int, mode: str
) -> None:
    # Blocks of few colours make equal differences and equal similarities, where OpenCV's sort decides.
    palette = np.random.default_rng(seed).integers(0, colours, (height, width, 3)) * (255 // colours)
    image = palette.astype(np.uint8).repeat(block, axis=0).repeat(block, axis=1)

    assert as_set(selective_search(image, mode=mode)) == opencv_set(image, mode)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "cat"])
def test_photographs_give_opencvs_boxes(name: str) -> None:
    import skimage.data

    photograph = getattr(skimage.data, name)()[:, :, :3]
    image = cv2.resize(photograph, (240, 160), interpolation=cv2.INTER_AREA)

    for mode in ("single", "fast"):
        assert as_set(selective_search(image, mode=mode)) == opencv_set(image, mode)


def test_colour_order_matters_and_is_right() -> None:
    image = scene(2)

    assert opencv_set(image, "fast") != opencv_set(image[:, :, ::-1].copy(), "fast")
    assert as_set(selective_search(image, mode="fast")) == opencv_set(image, "fast")


@pytest.mark.slow
def test_the_set_of_boxes_is_opencvs_on_real_photographs(real_data: Path) -> None:
    paths = sorted((real_data / "dev_coco" / "images" / "train2017").iterdir())
    assert len(paths) >= 60

    for number, path in enumerate(paths[:60]):
        image = decode(path, exif=False, max_pixels=10_000_000)
        if number % 6 == 0:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None].repeat(3, axis=2)
        mode = "fast" if number % 3 == 0 else "single"
        assert as_set(selective_search(image, mode=mode, key=number)) == opencv_set(image, mode), path.name


@pytest.mark.slow
def test_quality_mode_gives_opencvs_boxes_on_real_photographs(real_data: Path) -> None:
    for path in sorted((real_data / "dev_coco" / "images" / "train2017").iterdir())[:3]:
        image = decode(path, exif=False, max_pixels=10_000_000)
        assert as_set(selective_search(image, mode="quality")) == opencv_set(image, "quality"), path.name


@pytest.mark.slow
def test_a_large_photograph_gives_opencvs_boxes(real_data: Path) -> None:
    # 12 million pixels: counts of a colour histogram no longer fit into the 24 bits of a float. A photograph
    # of its own size and detail would take OpenCV hours: it looks at every pixel once for every segment.
    path = sorted((real_data / "dev_coco" / "images" / "train2017").iterdir())[0]
    image = cv2.resize(decode(path, exif=False, max_pixels=10_000_000), (4000, 3000))

    assert as_set(selective_search(image, mode="single")) == opencv_set(image, "single")


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


def test_the_order_of_ranks_is_pinned_to_these_golden_values() -> None:
    # The first and the last are one box: it stands where the better of its two ranks puts it.
    boxes = np.array([[i % 9, 0, 5, 5] for i in range(10)], np.int32)
    levels = np.array([1, 1, 1, 1, 2, 3, 4, 5, 6, 9], np.int32)

    orders = [ranked_order(boxes, levels, key=key)[:, 0].tolist() for key in (0, 139, 2**63 - 1)]

    assert orders == [
        [5, 0, 3, 1, 2, 4, 6, 8, 7],
        [0, 1, 5, 2, 3, 6, 4, 8, 7],
        [2, 4, 1, 0, 3, 5, 6, 7, 8],
    ]


def test_levels_come_first_mostly_from_below() -> None:
    # Of two regions of levels a < b, a precedes with probability 1 - a / (2 b).
    boxes = np.array([[0, 0, 1, 1], [0, 0, 2, 2]], np.int32)
    levels = np.array([1, 4], np.int32)

    low_first = np.mean([ranked_order(boxes, levels, key=key)[0, 2] == 1 for key in range(4000)])

    assert low_first == pytest.approx(1 - 1 / 8, abs=0.02)


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40, 50), (1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_image_is_one_box(engine: str, mode: str, shape: tuple[int, int], value: int) -> None:
    # OpenCV divides 0 by 0 in its texture histograms, and goes on.
    image = np.full((*shape, 3), value, np.uint8)

    boxes = selective_search(image, mode=mode, engine=engine)
    assert boxes.tolist() == [[0, 0, shape[1], shape[0]]]


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


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be fast or opencv, but is 'slow'"):
        selective_search(scene(0), engine="slow")


def test_opencv_without_contrib_is_answered_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "ximgproc")

    selective_search(scene(0))
    with pytest.raises(ConfigError, match="contrib modules") as caught:
        selective_search(scene(0), engine="opencv")

    assert "opencv-contrib-python-headless" in caught.value.fix
