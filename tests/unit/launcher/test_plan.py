from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from jobs.compose import compose
from jobs.config import Config, RunKind, load_header
from launcher.errors import RefusedError
from launcher.plan import make_plan, plan_again
from launcher.submission import submit
from univip.errors import DataError


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
