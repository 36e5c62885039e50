"""Shards and their merge: nothing is searched twice, nothing is lost, and the cut leaves no trace."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from univip.config import DataConfig, DataFormat, ProposalsConfig, SearchEngine, SearchMode
from univip.data.decode import decode
from univip.data.images import ImageIndex, write_index
from univip.data.proposals import ProposalStore
from univip.data.scan import scan
from univip.errors import DataError, UnivipError
from univip.observe import NullObserver
from univip.proposals.filters import filter_boxes
from univip.proposals.search import selective_search
from univip.proposals.shards import ShardedSearch
from univip.types import Image

# Shards are the same for both engines; processes with OpenCV's start sooner, and here they start often.
CONFIG = ProposalsConfig(mode=SearchMode.single, engine=SearchEngine.opencv, min_sizes=[16, 24], processes=1)


class Listener:
    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.records.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.records if name == kind]


def scene(seed: int, height: int = 64, width: int = 96) -> Image:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.uint8)
    for _ in range(10):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y : y + rng.integers(8, 40), x : x + rng.integers(8, 40)] = rng.integers(0, 256, 3)
    return image


def save(path: Path, pixels: npt.NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)


def folder(root: Path, num_images: int = 5) -> DataConfig:
    for number in range(num_images):
        save(root / f"{number}.png", scene(number))
    return DataConfig(format=DataFormat.folder, root=str(root))


def search(data: DataConfig, run_dir: Path, **changes: Any) -> ShardedSearch:
    run_dir.mkdir(exist_ok=True)
    write_index(scan(data), run_dir / "images.arrow")
    return ShardedSearch(ImageIndex.open(run_dir / "images.arrow"), data, replace(CONFIG, **changes), run_dir)


def run_all(sharded: ShardedSearch) -> Path:
    for shard in range(len(sharded.shards)):
        sharded.run(shard, NullObserver())
    sharded.merge()
    return sharded._run_dir / "proposals.arrow"


@pytest.mark.parametrize(
    ("num_images", "shard_images", "expected"),
    [(5, 2, [(0, 2), (2, 4), (4, 5)]), (4, 2, [(0, 2), (2, 4)]), (1, 200, [(0, 1)])],
)
def test_shards_cover_every_row_once(
    tmp_path: Path, num_images: int, shard_images: int, expected: list[tuple[int, int]]
) -> None:
    shards = search(folder(tmp_path / "data", num_images), tmp_path / "run", shard_images=shard_images).shards

    assert [(rows.start, rows.stop) for rows in shards] == expected


def test_the_store_has_the_same_bytes_for_any_number_of_shards_and_processes(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    (tmp_path / "data" / "bad.png").write_bytes((tmp_path / "data" / "0.png").read_bytes()[:-40])

    cuts = [{"shard_images": 6}, {"shard_images": 4, "processes": 2}]
    stores = [run_all(search(data, tmp_path / f"run{number}", **cut)) for number, cut in enumerate(cuts)]

    assert len({store.read_bytes() for store in stores}) == 1
    assert [len(list(store.parent.glob("shards/*.arrow"))) for store in stores] == [1, 2]
    ProposalStore.verify(stores[0])


def test_the_store_holds_what_search_and_filters_give(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 2)
    store = ProposalStore.open(run_all(search(data, tmp_path / "run")))
    index = ImageIndex.open(tmp_path / "run" / "images.arrow")

    assert store.fingerprint == index.fingerprint
    for row, image_id in enumerate(index.ids.tolist()):
        raw = selective_search(scene(row), mode="single", engine="opencv", key=image_id)
        np.testing.assert_array_equal(store[image_id], raw)
        for size in (16, 24):
            expected = filter_boxes(raw, min_size_px=size, max_ratio=3.0, max_iou=0.5)
            np.testing.assert_array_equal(store.filtered(image_id, size), expected)


def test_odd_photographs_are_counted_and_named_and_the_shard_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data = folder(root, 1)
    save(root / "63x63.png", scene(1, 63, 63))
    save(root / "640x64.png", scene(2, 64, 640))
    save(root / "gray.png", scene(3)[:, :, 0])
    save(root / "16bit.png", (scene(4)[:, :, 0].astype(np.uint16) * 257))
    PIL.Image.fromarray(scene(5)).convert("CMYK").save(root / "cmyk.jpg")
    for name in ("missing", "truncated", "swapped"):
        save(root / f"{name}.jpg", scene(6))
    sharded = search(data, tmp_path / "run", min_sizes=[16, 64])
    (root / "missing.jpg").unlink()
    os.truncate(root / "truncated.jpg", 900)
    save(root / "swapped.jpg", scene(6, 32, 32))
    listener = Listener()

    sharded.run(0, listener)
    report = sharded.merge()

    assert report["failed"] == {
        "missing": ["missing.jpg"],
        "size_mismatch": ["swapped.jpg"],
        "corrupt": ["truncated.jpg"],
    }
    assert report["without_boxes"]["min_64"].count("63x63.png") == 1
    assert not {"missing.jpg", "truncated.jpg"} & set(report["without_boxes"]["min_64"])
    assert {(fields["path"], fields["reason"]) for fields in listener.of("image_failed")} == {
        ("missing.jpg", "missing"),
        ("swapped.jpg", "size_mismatch"),
        ("truncated.jpg", "corrupt"),
    }
    last = listener.of("proposals")[-1]
    assert (last["images_done"], last["images"], last["shard"]) == (9, 9, 0)
    assert last["failed"] == {"missing": 1, "size_mismatch": 1, "corrupt": 1}
    store = ProposalStore.open(tmp_path / "run" / "proposals.arrow")
    assert last["boxes"] == report["boxes"]["raw"] == store.counts().sum()
    assert (store.counts() > 0).sum() == 6


def test_a_turned_photograph_gets_the_boxes_of_its_upright_copy(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "data" / "turned.jpg"
    save(turned, scene(8), exif=exif, quality=95)
    save(tmp_path / "data" / "upright.png", np.rot90(decode(turned, exif=False, max_pixels=10**6), -1).copy())
    data = DataConfig(format=DataFormat.folder, root=str(tmp_path / "data"))

    store = ProposalStore.open(run_all(search(data, tmp_path / "run")))

    first, second = (store[image_id] for image_id in store.ids.tolist())
    assert len(first) > 5
    assert set(map(tuple, first.tolist())) == set(map(tuple, second.tolist()))
    assert store.batches[0]["width"].to_pylist() == [64, 64]


def test_a_finished_shard_is_not_searched_again(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 3)
    sharded = search(data, tmp_path / "run", shard_images=2)
    first = sharded.run(0, NullObserver())
    before = (tmp_path / "run/shards/shard-00000.arrow").stat().st_mtime_ns
    (tmp_path / "data" / "0.png").unlink()
    listener = Listener()

    again = sharded.run(0, listener)

    assert again == first
    assert (tmp_path / "run/shards/shard-00000.arrow").stat().st_mtime_ns == before
    assert [fields["images_done"] for fields in listener.of("proposals")] == [2]


def test_a_shard_of_other_rows_settings_or_bytes_is_searched_again(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 2)
    run_dir = tmp_path / "run"
    path, report = run_dir / "shards/shard-00000.arrow", run_dir / "shards/shard-00000.json"
    search(data, run_dir).run(0, NullObserver())

    def is_finished(**changes: Any) -> bool:
        sharded = search(data, run_dir, **changes)
        return sharded._finished(path, sharded.shards[0]) is not None

    assert is_finished()
    assert is_finished(processes=7)
    assert not is_finished(shard_images=1)
    assert not is_finished(mode=SearchMode.fast)
    assert not is_finished(max_iou=0.4)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    assert not is_finished()
    path.write_bytes(content)
    assert is_finished()
    report.write_text("{}")
    assert not is_finished()
    report.unlink()
    assert not is_finished()


def test_killing_the_search_half_way_costs_only_the_unfinished_shards(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 4)
    sharded = search(data, tmp_path / "run", shard_images=2)
    (tmp_path / "data" / "2.png").unlink()  # the first thing that shard 1 reports
    code = f"""
import sys
from pathlib import Path
from univip.config import *
from univip.data.images import ImageIndex
from univip.proposals.shards import ShardedSearch

class Printer:
    def record(self, kind, **fields):
        print(kind, flush=True)
        if kind == "image_failed":
            sys.stdin.read()

run_dir = Path({str(tmp_path / "run")!r})
data = DataConfig(format=DataFormat.folder, root={str(tmp_path / "data")!r})
config = ProposalsConfig(
    mode="single", engine="opencv", min_sizes=[16, 24], processes=1, shard_images=2
)
sharded = ShardedSearch(ImageIndex.open(run_dir / "images.arrow"), data, config, run_dir)
for shard in range(2):
    sharded.run(shard, Printer())
    """
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    told = list(iter(lambda: str(child.stdout and child.stdout.readline()).strip(), "image_failed"))
    assert set(told) == {"proposals"}  # how often depends on how busy the machine is
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    shards = tmp_path / "run" / "shards"
    done = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert sorted(done) == ["shard-00000.arrow", "shard-00000.json"]
    with pytest.raises(UnivipError, match="all 2 shards must be finished before the merge, but 1 are not"):
        sharded.merge()

    save(tmp_path / "data" / "2.png", scene(2))
    store = ProposalStore.open(run_all(sharded))

    assert {name: (shards / name).stat().st_mtime_ns for name in done} == done
    assert not store.failed()


def test_an_interrupted_shard_ends_its_processes_at_once(tmp_path: Path) -> None:
    class Interrupted(NullObserver):
        def record(self, kind: str, **fields: object) -> None:
            raise KeyboardInterrupt

    data = folder(tmp_path / "data", 40)
    sharded = search(data, tmp_path / "run")
    (tmp_path / "data" / "0.png").unlink()

    with pytest.raises(KeyboardInterrupt) as caught:
        sharded.run(0, Interrupted())

    assert caught.traceback  # the frames are alive, so nothing was closed by chance
    assert not multiprocessing.active_children()
    assert not list((tmp_path / "run").glob("shards/*"))


def test_a_merge_that_was_done_is_not_repeated(tmp_path: Path) -> None:
    sharded = search(folder(tmp_path / "data", 1), tmp_path / "run")
    path = run_all(sharded)
    before = path.stat().st_mtime_ns
    report = json.loads(path.with_suffix(".json").read_text())
    for shard in (tmp_path / "run" / "shards").iterdir():
        shard.unlink()

    assert sharded.merge() == report
    assert path.stat().st_mtime_ns == before


def test_a_data_set_of_which_no_image_can_be_used_is_refused(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 2)
    sharded = search(data, tmp_path / "run")
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    sharded.run(0, NullObserver())

    with pytest.raises(DataError, match="none is: 2 missing"):
        sharded.merge()
    assert not (tmp_path / "run" / "proposals.arrow").exists()
