"""Statistics of boxes: counts, and the fallback rate that a training would really have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from univip.config import MinSizePolicy, ProposalsConfig, ViewsConfig
from univip.data.draws import SampleKey
from univip.data.images import ImageIndex, write_index
from univip.data.plan import SamplePlan
from univip.data.proposals import ProposalStore, make_rows, write_store
from univip.data.scan import Row, Scan
from univip.data.views import sample_views
from univip.proposals.filters import filter_boxes
from univip.proposals.plot import draw_statistics
from univip.proposals.statistics import margin, measure
from univip.types import Boxes

SIZES = [32, 48]
LIMITS = ProposalsConfig(min_sizes=SIZES)
VIEWS = ViewsConfig(min_overlap=32)
NUM_IMAGES = 40
FAILED = 7


@pytest.fixture
def data(tmp_path: Path) -> tuple[ImageIndex, ProposalStore]:
    rng = np.random.default_rng(0)
    rows = [Row(3 * number, f"{number}.jpg", 320, 240) for number in range(NUM_IMAGES)]
    write_index(Scan(rows, {}, "abc", exif=False), tmp_path / "images.arrow")
    raw: list[Boxes] = []
    for number in range(NUM_IMAGES):
        corner = rng.integers(0, 160, (number * 4, 2))
        boxes = np.concatenate([corner, rng.integers(20, 80, corner.shape)], 1).astype(np.int32)
        raw.append(boxes[:0] if number == FAILED else boxes)
    lists = {
        f"min_{size}": [filter_boxes(b, min_size_px=size, max_ratio=3.0, max_iou=0.5) for b in raw]
        for size in SIZES
    }
    status = ["corrupt" if number == FAILED else "ok" for number in range(NUM_IMAGES)]
    ids = np.array([row.id for row in rows])
    batch = make_rows(ids, np.full((NUM_IMAGES, 2), (320, 240)), status, {"raw": raw, **lists})
    write_store(tmp_path / "proposals.arrow", [batch], {"fingerprint": "abc", "min_sizes": SIZES})
    return ImageIndex.open(tmp_path / "images.arrow"), ProposalStore.open(tmp_path / "proposals.arrow")


def test_counts_are_of_the_images_that_could_be_searched(data: tuple[ImageIndex, ProposalStore]) -> None:
    index, store = data
    found = measure(index, store, VIEWS, LIMITS, seed=0, num_samples=10).to_json()

    expected = [4 * number for number in range(NUM_IMAGES) if number != FAILED]
    raw = found["boxes_per_image"]["raw"]
    assert (found["images"], found["failed"]) == (NUM_IMAGES, {"corrupt": 1})
    assert (raw["total"], raw["least"], raw["most"]) == (sum(expected), 0, 4 * (NUM_IMAGES - 1))
    assert raw["median"] == np.median(expected)
    assert raw["share_below_k"] == raw["share_without"] == 1 / (NUM_IMAGES - 1)
    small = [len(store.filtered(int(i), 32)) for i in store.ids if i != 3 * FAILED]
    assert found["boxes_per_image"]["min_32"]["share_below_k"] == np.mean(np.array(small) < 4)


@pytest.mark.parametrize("num_samples", [25, 200])
def test_the_fallback_rate_is_that_of_the_first_samples_of_the_plan(
    data: tuple[ImageIndex, ProposalStore], num_samples: int
) -> None:
    index, store = data
    found = measure(index, store, VIEWS, LIMITS, seed=5, num_samples=num_samples).to_json()["samples"]

    invented = []
    plan = SamplePlan(NUM_IMAGES, 1, 5)
    for data_step in range(num_samples):
        [epoch], [row] = plan.batch(data_step)
        if row != FAILED:
            image_id = 3 * int(row)
            boxes = {size: store.filtered(image_id, size) for size in SIZES}
            key = SampleKey(5, int(epoch), image_id)
            invented.append(sample_views((320, 240), boxes, key=key, views=VIEWS).statistics.random_boxes)
    assert found["number"] == len(invented)
    assert 0 < found["fallback_rate"] == np.mean(np.array(invented) > 0) < 1
    assert found["random_box_share"] == sum(invented) / (4 * len(invented))
    low, high = found["fallback_margin"]
    assert low < found["fallback_rate"] < high


def test_a_set_of_too_small_photographs_is_told(
    tmp_path: Path, data: tuple[ImageIndex, ProposalStore]
) -> None:
    index, store = data
    found = measure(index, store, replace(VIEWS, min_overlap=300), LIMITS, seed=0, num_samples=20)

    told = found.to_json()["samples"]
    assert (told["too_small_rate"], told["fallback_rate"], told["random_box_share"]) == (1.0, 0.0, 0.0)


def test_the_margin_is_wilsons() -> None:
    assert margin(0, 0) == (0.0, 1.0)
    assert margin(10, 100) == pytest.approx((0.05523, 0.17437), abs=2e-5)  # a textbook's figures
    assert margin(0, 48)[0] == 0.0


@pytest.mark.parametrize("policy", [MinSizePolicy.nested, MinSizePolicy.two_phase])
def test_the_plot_has_a_place_for_every_trial(
    data: tuple[ImageIndex, ProposalStore], policy: MinSizePolicy
) -> None:
    index, store = data
    found = measure(index, store, replace(VIEWS, min_size_policy=policy), LIMITS, seed=0, num_samples=50)
    max_trials = 20 if policy is MinSizePolicy.nested else 40

    assert found.trials.max() <= max_trials
    picture = draw_statistics(found, title="a run", max_trials=max_trials)
    assert picture.dtype == np.uint8
    assert (picture < 250).any()


def test_a_set_without_one_usable_image_can_be_told_and_drawn(tmp_path: Path) -> None:
    write_index(Scan([Row(1, "a.jpg", 9, 9)], {}, "abc", exif=False), tmp_path / "images.arrow")
    none: Boxes = np.empty((0, 4), np.int32)
    batch = make_rows(np.array([1]), np.array([[9, 9]]), ["corrupt"], {"raw": [none], "min_32": [none]})
    write_store(tmp_path / "a.arrow", [batch], {"fingerprint": "abc", "min_sizes": [32]})
    index, store = ImageIndex.open(tmp_path / "images.arrow"), ProposalStore.open(tmp_path / "a.arrow")

    found = measure(index, store, VIEWS, LIMITS, seed=0, num_samples=5)

    assert found.to_json()["samples"]["number"] == 0
    assert draw_statistics(found, title="a run", max_trials=20).ndim == 3
