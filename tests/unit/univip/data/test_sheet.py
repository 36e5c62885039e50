"""The sheet of samples: what is where, and told by more than its colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from univip.config import DataConfig, DataFormat, InstanceViews, ProposalsConfig, ViewsConfig
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import RAW, ProposalStore, column, make_rows, write_store
from univip.data.samples import SampleReader
from univip.data.scan import scan
from univip.data.sheet import draw_sheet

GREEN, DIM_GREEN = (0, 160, 0), (0, 80, 0)
SKY, ORANGE, WHITE, PURPLE = (0x56, 0xB4, 0xE9), (0xE6, 0x9F, 0), (255, 255, 255), (0xCC, 0x79, 0xA7)
PHOTO_PX = 500  # the part of a row that holds the photograph


def reader_of(tmp_path: Path, boxes: list[tuple[int, int, int, int]]) -> SampleReader:
    """Of a large photograph with these proposals and of one too small for any, both of one colour."""
    root = tmp_path / "photos"
    root.mkdir()
    PIL.Image.new("RGB", (250, 150), GREEN).save(root / "0.png")
    PIL.Image.new("RGB", (15, 20), GREEN).save(root / "1.png")
    data = DataConfig(format=DataFormat.folder, root=str(root))
    write_index(scan(data), tmp_path / "images.arrow")
    index = ImageIndex.open(tmp_path / "images.arrow")
    lists = [np.array(boxes, np.int32).reshape(-1, 4), np.empty((0, 4), np.int32)]
    rows = make_rows(index.ids, index.sizes, ["ok"] * 2, dict.fromkeys((RAW, column(24)), lists))
    write_store(tmp_path / "proposals.arrow", [rows], {"fingerprint": index.fingerprint, "min_sizes": [24]})
    store = ProposalStore.open(tmp_path / "proposals.arrow")
    views = ViewsConfig(scene_size=48, instance_size=20, min_overlap=24)
    return SampleReader(data, index, store, ProposalsConfig(min_sizes=[24]), views, seed=0)


def colours_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, pixels[..., :3].reshape(-1, 3).tolist()))


@pytest.mark.parametrize("is_found", [True, False])
def test_scenes_are_named_and_boxes_tell_where_they_came_from(tmp_path: Path, is_found: bool) -> None:
    """So many proposals everywhere that no box is ever invented, or none at all."""
    everywhere = [(x, y, 24, 24) for x in range(0, 226, 12) for y in range(0, 126, 12)]
    reader = reader_of(tmp_path, everywhere if is_found else [])
    sample = reader.sample(0, 0)
    assert sample.views.statistics.random_boxes == (0 if is_found else 4)

    sheet = draw_sheet(reader, [sample])

    photo = colours_of(sheet[:, :PHOTO_PX])
    assert {SKY, ORANGE, GREEN, DIM_GREEN, WHITE if is_found else PURPLE} <= photo
    assert (PURPLE if is_found else WHITE) not in photo


def test_an_outline_lies_where_its_scene_does(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, [])
    sample = reader.sample(3, 0)

    sheet = draw_sheet(reader, [sample])

    # 250 px wide, 500 px on the sheet, and in the middle of its row.
    top = (sheet.shape[0] - 300) // 2
    blue = np.argwhere((sheet[top : top + 300, :PHOTO_PX, :3] == SKY).all(-1))
    x, y, w, h = (2 * number for number in sample.views.scenes[0].tolist())
    assert blue.min(0).tolist() == [y, x]
    assert blue[:, 0].max() <= y + h - 1
    assert blue[:, 1].max() <= x + w - 1


def test_a_row_for_each_sample_and_none_for_boxes_that_are_not_there(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, [])
    byol = replace(reader, store=None, views=replace(reader.views, num_instances=0))
    one_view = replace(reader, views=replace(reader.views, instance_views=InstanceViews.shared))

    two, alone = (draw_sheet(reader, [reader.sample(0, row) for row in rows]) for rows in ((0, 1), (0,)))
    scenes_only, fewer = (draw_sheet(some, [some.sample(0, 0)]) for some in (byol, one_view))

    assert two.shape[0] > 2 * alone.shape[0]
    assert alone.shape[0] > fewer.shape[0] > scenes_only.shape[0]
    assert not {WHITE, PURPLE} & colours_of(scenes_only)
    small = two[alone.shape[0] :, :PHOTO_PX]
    assert not {WHITE, PURPLE} & colours_of(small)  # too small for boxes
    assert two.dtype == np.uint8
    assert set(np.unique(two[..., 3])) == {0, 255}  # the page shows through between the photographs
