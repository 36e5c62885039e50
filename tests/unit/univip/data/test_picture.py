from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from univip.config import DataConfig, DataFormat, ProposalsConfig, ViewsConfig
from univip.data.images import ImageIndex, write_index
from univip.data.picture import draw_sample
from univip.data.proposals import RAW, ProposalStore, column, make_rows, write_store
from univip.data.samples import SampleReader
from univip.data.scan import scan

GREEN = (0, 160, 0)


@pytest.fixture
def reader(tmp_path: Path) -> SampleReader:
    root = tmp_path / "photos"
    root.mkdir()
    PIL.Image.new("RGB", (150, 120), GREEN).save(root / "0.png")
    PIL.Image.new("RGB", (15, 20), GREEN).save(root / "1.png")
    data = DataConfig(format=DataFormat.folder, root=str(root))
    write_index(scan(data), tmp_path / "images.arrow")
    index = ImageIndex.open(tmp_path / "images.arrow")
    boxes = [np.empty((0, 4), np.int32)] * 2
    rows = make_rows(index.ids, index.sizes, ["ok"] * 2, dict.fromkeys((RAW, column(24)), boxes))
    write_store(tmp_path / "proposals.arrow", [rows], {"fingerprint": index.fingerprint, "min_sizes": [24]})
    store = ProposalStore.open(tmp_path / "proposals.arrow")
    views = ViewsConfig(scene_size=48, instance_size=20, min_overlap=24)
    return SampleReader(data, index, store, ProposalsConfig(min_sizes=[24]), views, seed=0)


def test_the_overlap_is_shown_at_full_brightness_and_the_rest_dimmed(reader: SampleReader):
    picture = draw_sample(reader, 0, 0)
    photo = picture[-120 - 30 :, 8 : 8 + 150].reshape(-1, 3)
    colours = {tuple(pixel) for pixel in photo.tolist()}

    assert GREEN in colours
    assert (0, 72, 0) in colours
    for outline in ((0x4C, 0xC9, 0xF0), (0xF7, 0x8C, 0x6B), (0xFF, 0xD1, 0x66)):
        assert outline in colours


def test_samples_without_instances_can_be_drawn(reader: SampleReader):
    byol = replace(reader, store=None, views=replace(reader.views, num_instances=0))

    for some, row in ((reader, 1), (byol, 0), (byol, 1)):
        picture = draw_sample(some, 3, row)
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
