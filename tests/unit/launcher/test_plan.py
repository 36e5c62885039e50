from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from jobs.attempts import attempt
from jobs.compose import compose
from jobs.config import Config, RunKind, load_header
from jobs.outcomes import write_json
from launcher.errors import RefusedError
from launcher.plan import make_plan, plan_again
from launcher.submission import submit
from univip.data import decode
from univip.data.scan import scan
from univip.errors import DataError
from univip.proposals.cut import search_seconds


@pytest.fixture
def config(tmp_path: Path) -> Config:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(5):
        PIL.Image.new("RGB", (30 + number, 20)).save(photographs / f"{number}.png")
    return compose(
        [
            f"data.root='{photographs}'",
            "data=folder",
            f"paths.runs='{tmp_path}/runs'",
            "proposals.shard_images=2",
            "train.epochs=3",
            "train.global_batch=4",
        ]
    )


def test_a_plan_counts_images_shards_and_data_steps(config: Config) -> None:
    plan = make_plan("pipeline", config)

    assert (plan.header.num_images, plan.num_shards, plan.data_steps) == (5, 3, 4)
    assert plan.header.kind is RunKind.train
    assert plan.proposals is not None
    assert plan.header.proposals == plan.proposals.id
    assert not (Path(config.paths.runs)).exists()


def test_a_plan_reads_as_text(config: Config) -> None:
    plan = make_plan("pipeline", config)

    text = "\n".join(plan.lines())

    assert "images     5" in text
    assert "shards     3 of about 2 images" in text
    assert "training   4 data steps of 4 images" in text
    assert f"prepare, shards, merge of {plan.header.proposals}" in text


def test_the_same_photographs_elsewhere_are_the_same_run(config: Config, tmp_path: Path) -> None:
    before = make_plan("pipeline", config)
    (tmp_path / "photographs").rename(tmp_path / "moved")

    after = make_plan("pipeline", replace(config, data=replace(config.data, root=str(tmp_path / "moved"))))

    assert after.header == before.header


def test_edited_photographs_are_another_run(config: Config, tmp_path: Path) -> None:
    before = make_plan("pipeline", config)
    PIL.Image.new("RGB", (99, 20)).save(tmp_path / "photographs" / "0.png")

    assert make_plan("pipeline", config).header.id != before.header.id


def test_boxes_alone_are_one_run(config: Config) -> None:
    plan = make_plan("proposals", config)

    assert plan.header.kind is RunKind.proposals
    assert plan.proposals is None
    assert plan.header.id == make_plan("pipeline", config).header.proposals


def test_a_wrong_folder_is_refused(config: Config) -> None:
    with pytest.raises(DataError, match=r"`data\.root` must be an existing folder"):
        make_plan("pipeline", replace(config, data=replace(config.data, root="/nowhere")))


def test_a_run_is_planned_again_from_its_own_configuration(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.submission.start_local", lambda *_: 1)
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    moved = (tmp_path / "runs").rename(tmp_path / "moved runs") / run_dir.name

    again = plan_again(moved)

    assert again.header == load_header(moved) == plan.header
    assert again.run_dir == moved
    assert [stage.kind for stage in again.request.stages] == [stage.kind for stage in plan.request.stages]


def test_a_run_whose_photographs_were_edited_is_not_resumed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.submission.start_local", lambda *_: 1)
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    (tmp_path / "photographs" / "0.png").unlink()

    with pytest.raises(RefusedError, match="ids, names or sizes have changed"):
        plan_again(run_dir)


def test_a_large_folder_is_listed_and_only_some_of_its_headers_are_read(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_plan("proposals", config)
    (tmp_path / "photographs" / "2.png").rename(tmp_path / "photographs" / "2.jpg")
    renamed = make_plan("proposals", config)
    (tmp_path / "photographs" / "2.jpg").rename(tmp_path / "photographs" / "2.png")
    opened: list[str] = []
    read_size = decode.read_size

    def read(path: Path, **limits: Any) -> tuple[int, int]:
        opened.append(path.name)
        return read_size(path, **limits)

    monkeypatch.setattr("univip.data.decode.read_size", read)
    monkeypatch.setattr("launcher.plan._MOST_HEADERS", 2)

    listed = make_plan("proposals", config)

    assert sorted(opened) == ["0.png", "2.png"]
    assert listed.header == whole.header  # and so the same run as that of a folder that was read
    assert renamed.header.id != whole.header.id


def test_the_work_decides_how_many_shards_there_are(config: Config) -> None:
    def shards(**changes: Any) -> int:
        boxes = replace(config.proposals, shard_images=5000, processes=1, **changes)
        return make_plan("proposals", replace(config, proposals=boxes)).num_shards

    seconds = search_seconds(20 * sum(range(30, 35)), "fast", "fast")
    assert shards() == 1
    assert shards(shard_minutes=seconds / 60 / 2.5) == 3
    assert shards(shard_minutes=1e-9) == 5  # none of them empty


def test_a_run_keeps_the_shards_that_it_was_cut_into(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("launcher.submission.start_local", lambda *_: 1)
    run_dir = submit(make_plan("proposals", config), []).run_dir
    larger = replace(config, proposals=replace(config.proposals, shard_images=5))

    assert make_plan("proposals", larger).num_shards == load_header(run_dir).num_shards == 3
    write_json(run_dir / "images.json", {"shards": [0, 1, 2, 4, 5]})  # what was done in the end counts most
    assert make_plan("proposals", larger).num_shards == 4


def test_only_shards_without_a_report_are_left(config: Config) -> None:
    plan = make_plan("proposals", config)
    folder = plan.run_dir / "shards"
    assert plan.shards_left == [0, 1, 2]

    folder.mkdir(parents=True)
    (folder / "shard-00001.json").touch()
    (folder / "shard-00002.arrow").touch()  # cut off before its report
    assert plan.shards_left == [0, 2]

    for shard in (0, 2):
        (folder / f"shard-{shard:05d}.json").touch()
    assert plan.shards_left == [0]  # an array has at least one element


def test_boxes_whose_store_was_removed_are_merged_again(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.submission.start_local", lambda *_: 1)
    plan = make_plan("proposals", config)
    run_dir = submit(plan, []).run_dir
    for kind in ("prepare", "shards", "merge"):
        with attempt(run_dir, kind) as mine:
            mine.exit_code = 0
    layout = scan(config.data).layout
    write_json(run_dir / "images.json", {"layout": layout, "shards": [0, 2, 4, 5]})
    write_json(run_dir / "proposals.json", {})
    runs = Path(config.paths.runs)
    assert make_plan("proposals", config).request.remaining(runs) == []

    (run_dir / "proposals.json").unlink()

    left = make_plan("proposals", config).request.remaining(runs)
    assert [stage.kind for stage in left] == ["shards", "merge"]
