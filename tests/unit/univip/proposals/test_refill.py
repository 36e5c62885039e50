"""A store made part by part is the same however often it was interrupted, and tells what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from univip.data.images import ImageIndex, write_index
from univip.data.proposals import ProposalStore
from univip.data.scan import Row, Scan, fingerprint
from univip.proposals import refill
from univip.proposals.filters import filter_boxes
from univip.proposals.refill import StoreWriter
from univip.types import Boxes

LISTED = [Row(n, f"{n}.jpg", 400, 300) for n in range(7)]
PROVENANCE = {"source": "orl", "fingerprint": "f", "min_sizes": [20, 90], "max_ratio": 3.0, "max_iou": 0.5}
STATUSES = ["ok", "ok", "corrupt", "ok", "ok", "ok", "missing"]


def make_boxes(number: int) -> Boxes:
    if STATUSES[number] != "ok" or number == 4:
        return np.empty((0, 4), np.int32)
    random = np.random.default_rng(number)
    corner = random.integers(0, 200, (60, 2))
    return np.concatenate([corner, random.integers(1, [200, 100], (60, 2))], axis=1).astype(np.int32)


BOXES = [make_boxes(number) for number in range(7)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refill, "_PART_BOXES", 100)


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    write_index(Scan(LISTED, {}, fingerprint(LISTED), exif=False), tmp_path / "images.arrow")
    return ImageIndex.open(tmp_path / "images.arrow")


def writer(index: ImageIndex, run_dir: Path, **changes: Any) -> StoreWriter:
    run_dir.mkdir(exist_ok=True)
    return StoreWriter(index, PROVENANCE | changes, run_dir)


def fill(store: StoreWriter, stop: int = 7) -> StoreWriter:
    for number in range(store.done, stop):
        counts = np.array([len(BOXES[number])])
        store.add(BOXES[number], counts, mark=[number + 1], statuses=STATUSES[number : number + 1])
    return store


def test_a_store_holds_the_raw_boxes_and_the_lists_that_the_filter_leaves(
    index: ImageIndex, tmp_path: Path
) -> None:
    report = fill(writer(index, tmp_path / "run")).finish()

    store = ProposalStore.open(tmp_path / "run" / "proposals.arrow")
    assert [store.status(number) for number in range(7)] == STATUSES
    for number, boxes in enumerate(BOXES):
        np.testing.assert_array_equal(store[number], boxes)
        for size in (20, 90):
            expected = filter_boxes(boxes, min_size_px=size, max_ratio=3.0, max_iou=0.5)
            np.testing.assert_array_equal(store.filtered(number, size), expected)
    assert report["boxes"]["raw"] == 240
    assert 0 < report["boxes"]["min_90"] < report["boxes"]["min_20"] < 240
    assert report["failed"] == {"corrupt": ["2.jpg"], "missing": ["6.jpg"]}
    assert "4.jpg" in report["without_boxes"]["min_20"]
    ProposalStore.verify(store.source)
    assert not (tmp_path / "run" / "parts").exists()


@pytest.mark.parametrize("stop", range(8))
def test_a_later_process_goes_on_behind_the_last_part(index: ImageIndex, tmp_path: Path, stop: int) -> None:
    fill(writer(index, tmp_path / "whole")).finish()
    fill(writer(index, tmp_path / "cut"), stop)

    again = writer(index, tmp_path / "cut")
    assert again.done <= stop
    assert again.mark == ([again.done] if again.done else [])
    fill(again).finish()

    whole, cut = ((tmp_path / name / "proposals.arrow").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_the_size_of_a_part_leaves_no_trace(
    index: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = set()
    for size in (1, 100, 10_000):
        monkeypatch.setattr(refill, "_PART_BOXES", size)
        fill(writer(index, tmp_path / str(size))).finish()
        contents.add((tmp_path / str(size) / "proposals.arrow").read_bytes())

    assert len(contents) == 1


def test_parts_made_in_another_way_or_damaged_are_made_again(index: ImageIndex, tmp_path: Path) -> None:
    fill(writer(index, tmp_path / "run"), 6)
    assert writer(index, tmp_path / "run").done == 6
    assert writer(index, tmp_path / "run", max_iou=0.6).done == 0
    first, *_ = sorted((tmp_path / "run" / "parts").iterdir())
    first.write_bytes(first.read_bytes()[:-50])

    assert writer(index, tmp_path / "run").done == 0


def test_a_finished_store_is_known_by_how_it_was_made_and_by_its_bytes(
    index: ImageIndex, tmp_path: Path
) -> None:
    assert writer(index, tmp_path / "run").report() is None
    report = fill(writer(index, tmp_path / "run")).finish()

    assert writer(index, tmp_path / "run").report() == report
    assert writer(index, tmp_path / "run", max_iou=0.6).report() is None
    with (tmp_path / "run" / "proposals.arrow").open("ab") as file:
        file.write(b"x")
    assert writer(index, tmp_path / "run").report() is None
