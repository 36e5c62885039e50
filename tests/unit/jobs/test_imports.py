"""Runs of boxes that nobody searched are, for all who use them, like searched ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs import proposals
from jobs.attempts import read_attempts
from jobs.config import Config, RunHeader, RunKind, store
from jobs.imports import export_boxes, import_boxes, refilter
from monitoring.journal import read
from univip.config import DataConfig, ProposalsConfig, SearchEngine, SearchMode
from univip.data.proposals import ProposalStore
from univip.data.scan import scan
from univip.errors import ConfigError, DataError
from univip.observe import NullObserver
from univip.proposals.foreign import Source, examine

Make = Callable[..., Path]


def nothing(done: int) -> None:
    pass


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Four photographs in COCO's layout, of which the second is too large to be used."""
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    images = []
    for number, size in enumerate([(80, 64), (300, 300), (64, 80), (64, 64)]):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.NEAREST).save(
            root / "train" / f"{number}.png"
        )
        images.append({"id": number + 5, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    (root / "annotations" / "instances_train.json").write_text(json.dumps({"images": images}))
    return Config(
        data=DataConfig(root=str(root), split="train", max_pixels=10_000),
        # The engine that starts sooner.
        proposals=ProposalsConfig(
            mode=SearchMode.single, engine=SearchEngine.opencv, min_sizes=[16], processes=1
        ),
    )


@pytest.fixture
def make(config: Config, tmp_path: Path) -> Make:
    """Make the directory of a proposals run."""

    def make(name: str, **changes: object) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        changed = replace(config, proposals=replace(config.proposals, **changes))
        store(changed, RunHeader(name, RunKind.proposals, scan(config.data).fingerprint, 3), run_dir)
        return run_dir

    return make


def search(config: Config, run_dir: Path) -> Path:
    proposals.prepare(config, run_dir)
    for shard in range(proposals.num_shards(config, run_dir)):
        proposals.run_shard(config, run_dir, shard, NullObserver())
    proposals.merge(config, run_dir)
    return run_dir


def sources(*paths: Path) -> list[Source]:
    return examine(paths, nothing)


def test_boxes_that_were_exported_and_imported_are_the_same_boxes(
    config: Config, make: Make, tmp_path: Path
) -> None:
    searched = search(config, make("proposals-1"))
    assert export_boxes(searched, tmp_path / "boxes.json", None, nothing) == 1
    report = import_boxes(make("proposals-2", source="0" * 12), sources(tmp_path / "boxes.json"), nothing)

    one, other = (
        ProposalStore.open(tmp_path / name / "proposals.arrow") for name in ("proposals-1", "proposals-2")
    )
    assert one.ids.tolist() == other.ids.tolist() == [5, 7, 8]
    for image_id in one.ids.tolist():
        np.testing.assert_array_equal(one[image_id], other[image_id])
        np.testing.assert_array_equal(one.filtered(image_id, 16), other.filtered(image_id, 16))
    assert other.provenance["source"] == "orl"
    assert other.provenance["source_sha256"] == [sources(tmp_path / "boxes.json")[0].sha256]
    assert report["boxes"]["raw"] == one.counts().sum() > 3
    export_boxes(tmp_path / "proposals-2", tmp_path / "again.json", None, nothing)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "boxes.json").read_bytes()


def test_the_image_that_is_not_used_has_its_row_in_an_export(
    config: Config, make: Make, tmp_path: Path
) -> None:
    searched = search(config, make("proposals-1"))
    export_boxes(searched, tmp_path / "a.json", 16, nothing)

    rows = json.loads((tmp_path / "a.json").read_text())["bbox"]
    assert len(rows) == 4
    assert rows[1] == []
    filtered = ProposalStore.open(searched / "proposals.arrow").filtered(7, 16).tolist()
    assert rows[2] == (filtered[0] if len(filtered) == 1 else filtered)


def test_filtering_anew_gives_the_bytes_that_a_search_would_have_given(
    config: Config, make: Make, tmp_path: Path
) -> None:
    limits = {"min_sizes": [12, 20], "max_ratio": 2.0, "max_iou": 0.7}
    searched = search(config, make("proposals-1"))
    changed = replace(config, proposals=replace(config.proposals, **limits))
    expected = search(changed, make("proposals-2", **limits))

    refilter(make("proposals-3", **limits), searched, nothing)

    for name in ("proposals.arrow", "images.arrow"):
        assert (tmp_path / "proposals-3" / name).read_bytes() == (expected / name).read_bytes()


def test_filtering_a_damaged_store_is_refused(config: Config, make: Make) -> None:
    searched = search(config, make("proposals-1"))
    with (searched / "proposals.arrow").open("r+b") as file:
        file.seek(-2000, 2)
        file.write(b"\x55" * 8)

    with pytest.raises(DataError):
        refilter(make("proposals-2", max_iou=0.7), searched, nothing)


def test_attempts_and_journal_tell_of_an_import(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"bbox": [[], [], [1, 2, 3, 4], []]}')
    run_dir = make("proposals-1", source="0" * 12)
    import_boxes(run_dir, sources(tmp_path / "a.json"), nothing)

    found = [(attempt.stage, attempt.exit_code) for attempt in read_attempts(run_dir)]
    assert found == [("prepare", 0), ("shards", 0), ("merge", 0)]
    records = list(read(run_dir))
    assert [record["state"] for record in records if record["kind"] == "run"][-1] == "done"
    assert [record["boxes"] for record in records if record["kind"] == "proposals"] == [1]


def test_an_import_that_fails_says_so_in_its_attempt_and_leaves_no_store(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"bbox": [[], [], [1, 2, 300, 4], []]}')
    run_dir = make("proposals-1", source="0" * 12)

    with pytest.raises(DataError, match=r"box \[1, 2, 300, 4\] of row 2 is not inside image `train/2.png`"):
        import_boxes(run_dir, sources(tmp_path / "a.json"), nothing)

    last = read_attempts(run_dir)[-1]
    assert (last.stage, last.exit_code, last.cause) == ("shards", 77, "refused")
    assert "row 2" in last.message
    assert not (run_dir / "proposals.arrow").exists()


def test_an_import_that_is_done_is_not_done_again(make: Make, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"bbox": [[], [], [1, 2, 3, 4], []]}')
    run_dir = make("proposals-1", source="0" * 12)
    first = import_boxes(run_dir, sources(tmp_path / "a.json"), nothing)
    before = (run_dir / "proposals.arrow").stat()

    assert import_boxes(run_dir, sources(tmp_path / "a.json"), nothing) == first
    assert (run_dir / "proposals.arrow").stat().st_mtime_ns == before.st_mtime_ns


def test_an_imported_run_is_never_searched(config: Config, make: Make) -> None:
    changed = replace(config, proposals=replace(config.proposals, source="0" * 12))
    run_dir = make("proposals-1", source="0" * 12)
    proposals.prepare(changed, run_dir)

    with pytest.raises(ConfigError, match="must be imported and not searched"):
        proposals.run_shards(changed, run_dir, NullObserver())


def test_a_run_without_boxes_can_neither_be_exported_nor_filtered(make: Make, tmp_path: Path) -> None:
    run_dir = make("proposals-1")

    with pytest.raises(ConfigError, match="must have boxes, but has none yet") as refused:
        export_boxes(run_dir, tmp_path / "a.json", None, nothing)
    assert refused.value.fix == f"univip resume {run_dir}"
    with pytest.raises(ConfigError, match="must have boxes, but has none yet"):
        refilter(make("proposals-2"), run_dir, nothing)
    assert not (tmp_path / "a.json").exists()


def test_an_export_for_other_annotations_is_refused(config: Config, make: Make, tmp_path: Path) -> None:
    searched = search(config, make("proposals-1"))
    path = Path(config.data.root) / "annotations" / "instances_train.json"
    images = json.loads(path.read_text())["images"]
    path.write_text(json.dumps({"images": images[::-1]}))

    with pytest.raises(DataError, match="must be those of the run"):
        export_boxes(searched, tmp_path / "a.json", None, nothing)
    assert not (tmp_path / "a.json").exists()
