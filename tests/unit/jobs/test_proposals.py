"""The proposals job from photographs to a store, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from jobs import proposals
from jobs.config import Config
from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchMode
from univip.data.images import ImageIndex
from univip.data.proposals import ProposalStore
from univip.errors import DataError, UnivipError
from univip.observe import NullObserver


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(tmp_path / "data" / f"{number}.png")
    return Config(
        data=DataConfig(format=DataFormat.folder, root=str(tmp_path / "data")),
        proposals=ProposalsConfig(mode=SearchMode.single, min_sizes=[16], shard_images=2, processes=1),
    )


def test_photographs_become_a_store(config: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    index = proposals.prepare(config, run_dir)
    for shard in range(proposals.num_shards(config, run_dir)):
        proposals.run_shard(config, run_dir, shard, NullObserver())
    report = proposals.merge(config, run_dir)

    store = ProposalStore.open(run_dir / "proposals.arrow")
    assert store.ids.tolist() == index.ids.tolist()
    assert store.fingerprint == index.fingerprint
    assert store.provenance["engine"] == "fast"
    assert report["images"] == 3
    assert report["boxes"]["raw"] == store.counts().sum() > 3


def test_preparing_again_changes_nothing(config: Config, tmp_path: Path) -> None:
    proposals.prepare(config, tmp_path / "run")
    before = (tmp_path / "run" / "images.arrow").read_bytes()
    proposals.prepare(config, tmp_path / "run")

    assert (tmp_path / "run" / "images.arrow").read_bytes() == before


def test_data_edited_under_a_run_are_refused_and_the_index_stays(config: Config, tmp_path: Path) -> None:
    proposals.prepare(config, tmp_path / "run")
    before = (tmp_path / "run" / "images.arrow").read_bytes()
    PIL.Image.new("RGB", (70, 64)).save(tmp_path / "data" / "1.png")

    with pytest.raises(DataError, match="must be those the run was made for") as caught:
        proposals.prepare(config, tmp_path / "run")

    assert str(tmp_path / "data") in caught.value.where
    assert (tmp_path / "run" / "images.arrow").read_bytes() == before


def test_data_that_changed_between_request_and_start_are_refused(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be those the run was made for"):
        proposals.prepare(config, tmp_path / "run", expected_fingerprint="0" * 64)

    assert not (tmp_path / "run" / "images.arrow").exists()


def test_a_data_set_that_moved_is_still_the_same(config: Config, tmp_path: Path) -> None:
    expected = proposals.prepare(config, tmp_path / "run").fingerprint
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = replace(config, data=replace(config.data, root=str(tmp_path / "moved")))

    assert proposals.prepare(moved, tmp_path / "run", expected_fingerprint=expected).fingerprint == expected


def test_photographs_left_out_are_named_in_a_file_for_people(config: Config, tmp_path: Path) -> None:
    (tmp_path / "data" / "letter.jpg").write_text("hello")

    proposals.prepare(config, tmp_path / "run")

    report = json.loads((tmp_path / "run" / "images.json").read_text())
    assert (report["images"], report["failed"]) == (3, {"corrupt": ["letter.jpg"]})


def test_without_a_usable_photograph_the_shards_are_refused_and_searched_again(
    config: Config, tmp_path: Path
) -> None:
    run_dir, observer = tmp_path / "run", NullObserver()
    proposals.prepare(config, run_dir)
    (tmp_path / "data").rename(tmp_path / "out of reach")

    with pytest.raises(
        DataError, match="at least one of the 3 images must be usable, but none is: 3 missing"
    ):
        proposals.run_shards(config, run_dir, observer)
    for shard in range(proposals.num_shards(config, run_dir)):  # as on SLURM: no process sees all shards
        proposals.run_shard(config, run_dir, shard, observer)
    with pytest.raises(DataError, match="at least one of the 3 images must be usable"):
        proposals.merge(config, run_dir)
    (tmp_path / "out of reach").rename(tmp_path / "data")
    proposals.run_shards(config, run_dir, observer)

    assert proposals.merge(config, run_dir)["failed"] == {}


def test_shards_stay_as_they_were_cut(config: Config, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    proposals.prepare(config, run_dir, num_shards=3)
    before = (run_dir / "images.json").read_bytes()
    one = replace(config, proposals=replace(config.proposals, shard_images=5000))

    proposals.prepare(one, run_dir, num_shards=1)

    assert proposals.num_shards(one, run_dir) == 3
    assert (run_dir / "images.json").read_bytes() == before


def test_there_are_no_more_shards_than_usable_photographs(config: Config, tmp_path: Path) -> None:
    proposals.prepare(config, tmp_path / "run", num_shards=10)

    assert proposals.num_shards(config, tmp_path / "run") == 3


def test_a_photograph_that_became_unreadable_does_not_change_the_index(
    config: Config, tmp_path: Path
) -> None:
    """Its length is as before, so the run is the same one; but rows must not move under finished shards."""
    proposals.prepare(config, tmp_path / "run")
    path = tmp_path / "data" / "1.png"
    path.write_bytes(bytes(path.stat().st_size))

    with pytest.raises(DataError, match="the 3 photographs that could be read at first") as caught:
        proposals.prepare(config, tmp_path / "run")
    assert "remove" in caught.value.fix


def test_a_merge_that_finds_a_damaged_shard_leaves_it_to_be_searched_again(
    config: Config, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    proposals.prepare(config, run_dir)
    proposals.run_shards(config, run_dir, NullObserver())
    path = run_dir / "shards" / "shard-00001.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(UnivipError, match="but 1 are not"):
        proposals.merge(config, run_dir)

    assert [each.name for each in sorted((run_dir / "shards").glob("*.json"))] == ["shard-00000.json"]
    proposals.run_shard(config, run_dir, 1, NullObserver())
    assert proposals.merge(config, run_dir)["images"] == 3


@pytest.mark.slow
def test_the_whole_job_runs_on_photographs(config: Config, tmp_path: Path, real_data: Path) -> None:
    data = DataConfig(root=str(real_data / "dev_coco"), split="val2017")
    shards = ProposalsConfig(mode=SearchMode.single, shard_images=30)
    config, run_dir = replace(config, data=data, proposals=shards), tmp_path / "run"

    index = proposals.prepare(config, run_dir)
    for shard in range(proposals.num_shards(config, run_dir)):
        proposals.run_shard(config, run_dir, shard, NullObserver())
    report: dict[str, Any] = proposals.merge(config, run_dir)

    assert report["images"] == len(index) == 78
    assert not report["failed"]
    store = ProposalStore.open(run_dir / "proposals.arrow")
    for row, image_id in enumerate(index.ids.tolist()):
        boxes = store[image_id]
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= index.sizes[row]).all()
    assert len(ImageIndex.open(run_dir / "images.arrow")) == len(store)
