"""Pictures of a run: its boxes, and the samples made with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs import proposals
from jobs.config import Config, RunHeader, RunKind, store
from jobs.picture import write_picture, write_sample
from jobs.statistics import box_statistics
from univip.config import (
    DataConfig,
    DataFormat,
    MethodName,
    ProposalsConfig,
    SearchEngine,
    SearchMode,
    ViewsConfig,
)
from univip.data.images import ImageIndex
from univip.data.scan import scan
from univip.errors import ConfigError, DataError
from univip.observe import NullObserver


@pytest.fixture
def train_dir(tmp_path: Path) -> Path:
    """A training run on three photographs, and the run of its boxes beside it."""
    (tmp_path / "data").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(tmp_path / "data" / f"{number}.png")
    config = Config(
        data=DataConfig(format=DataFormat.folder, root=str(tmp_path / "data")),
        proposals=ProposalsConfig(
            mode=SearchMode.single, engine=SearchEngine.opencv, min_sizes=[16], processes=1
        ),
        views=ViewsConfig(scene_size=32, instance_size=16, min_overlap=16),
    )
    fingerprint = scan(config.data).fingerprint
    boxes, train = tmp_path / "proposals-1", tmp_path / "univip-1"
    for run_dir, kind, beside in ((boxes, RunKind.proposals, ""), (train, RunKind.train, boxes.name)):
        run_dir.mkdir()
        store(config, RunHeader(run_dir.name, kind, fingerprint, 3, beside), run_dir)
    proposals.prepare(config, boxes)
    proposals.run_shard(config, boxes, 0, NullObserver())
    proposals.merge(config, boxes)
    return train


def pixels_of(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


def test_the_boxes_of_an_image_can_be_drawn_from_either_run(train_dir: Path, tmp_path: Path) -> None:
    one = write_picture(train_dir, "#1", tmp_path / "a.png")
    other = write_picture(tmp_path / "proposals-1", "#1", tmp_path / "b.png")

    assert pixels_of(one).shape[0] > 64
    assert (pixels_of(one) == pixels_of(other)).all()


def test_a_sample_is_another_one_in_another_epoch(train_dir: Path, tmp_path: Path) -> None:
    first, again, later = (
        pixels_of(write_sample(train_dir, "#1", tmp_path / f"{number}.png", epoch=epoch))
        for number, epoch in enumerate([0, 0, 5])
    )

    assert first.shape[1] > 64 + 2 * 32 + 4 * 16  # photograph, two scenes, four instances
    assert (first == again).all()
    assert first.shape != later.shape or (first != later).any()


def test_a_sample_of_a_method_without_boxes_needs_no_boxes(train_dir: Path, tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(format=DataFormat.folder, root=str(tmp_path / "data")),
        views=ViewsConfig(scene_size=32),
    )
    config = replace(config, method=replace(config.method, name=MethodName.byol))
    run_dir = tmp_path / "byol-1"
    run_dir.mkdir()
    store(config, RunHeader("byol-1", RunKind.train, scan(config.data).fingerprint, 3), run_dir)
    with pytest.raises(ConfigError, match="must have an index to show"):
        write_sample(run_dir, "#0", tmp_path / "a.png", epoch=0)

    proposals.prepare(config, run_dir)

    assert write_sample(run_dir, "#0", tmp_path / "a.png", epoch=0).exists()


def without_boxes(train_dir: Path) -> Path:
    (train_dir.parent / "proposals-1" / "proposals.arrow").unlink()
    return train_dir


@pytest.mark.parametrize(
    ("run_of", "image", "message", "fix"),
    [
        (
            lambda train: train.parent / "proposals-1",
            "#0",
            "must be a training run to show a sample",
            "univip proposals show '#0' RUN",
        ),
        (lambda train: train, "#3", "one of #0 to #2, but is `#3`", "or '#0'"),
        (without_boxes, "#0", "must have boxes to show, but has none yet", "univip resume RUN"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    train_dir: Path, tmp_path: Path, run_of: Callable[[Path], Path], image: str, message: str, fix: str
) -> None:
    run_dir = run_of(train_dir)
    with pytest.raises(ConfigError, match=message) as refused:
        write_sample(run_dir, image, tmp_path / "a.png", epoch=0)
    assert refused.value.fix.endswith(fix.replace("RUN", str(run_dir)))
    assert not (tmp_path / "a.png").exists()


def test_an_image_can_be_named_by_row_id_or_file(train_dir: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(tmp_path / "proposals-1" / "images.arrow")
    row = [index.path(row) for row in range(3)].index("1.png")

    pictures = [
        pixels_of(write_picture(train_dir, name, tmp_path / f"{number}.png"))
        for number, name in enumerate(["1.png", f"#{row}", str(index.ids[row])])
    ]

    assert all((picture == pictures[0]).all() for picture in pictures)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("#3", "one of #0 to #2, but is `#3`"),
        ("#", "but is `#`"),
        ("9.png", "the name of a file"),
        ("", "but is ``"),
    ],
)
def test_an_image_that_is_not_there_is_refused_with_one_that_is(
    train_dir: Path, tmp_path: Path, image: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        write_picture(train_dir, image, tmp_path / "a.png")
    assert "'#0'" in caught.value.fix


def test_a_name_of_several_files_is_refused_with_their_paths(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        PIL.Image.new("RGB", (40, 40)).save(tmp_path / "data" / folder / "a.png")
    config = Config(
        data=DataConfig(format=DataFormat.folder, root=str(tmp_path / "data")),
        proposals=ProposalsConfig(mode=SearchMode.single, min_sizes=[16], processes=1),
    )
    run_dir = tmp_path / "proposals-1"
    run_dir.mkdir()
    store(config, RunHeader(run_dir.name, RunKind.proposals, scan(config.data).fingerprint, 2), run_dir)
    proposals.prepare(config, run_dir)
    proposals.run_shard(config, run_dir, 0, NullObserver())
    proposals.merge(config, run_dir)

    with pytest.raises(ConfigError, match=r"2 are named `a.png`: one/a.png, two/a.png"):
        write_picture(run_dir, "a.png", tmp_path / "a.png")
    assert pixels_of(write_picture(run_dir, "two/a.png", tmp_path / "a.png")).ndim == 3


def test_statistics_are_told_and_plotted_from_either_run(train_dir: Path, tmp_path: Path) -> None:
    one = box_statistics(train_dir, tmp_path / "a.png")
    other = box_statistics(tmp_path / "proposals-1", None)

    assert one["run"] == "univip-1"
    assert one["images"] == other["images"] == 3
    assert set(one["boxes_per_image"]) == {"raw", "min_16"}
    assert pixels_of(tmp_path / "a.png").ndim == 3


def test_statistics_of_a_damaged_store_are_refused(train_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "proposals-1" / "proposals.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(DataError, match="must have the SHA-256"):
        box_statistics(train_dir, None)
