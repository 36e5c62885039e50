import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from jobs.compose import compose
from jobs.config import (
    FILE_NAME,
    Config,
    RunHeader,
    RunKind,
    data_dir,
    load,
    load_header,
    store,
    with_site_of,
)
from univip.config import DataConfig, SearchMode, TrainConfig
from univip.errors import ConfigError

HEADER = RunHeader("univip-01234567", RunKind.train, "f" * 64, 24, "proposals-89abcdef")


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = compose(
        [
            "data.root='/my photos: all #1'",
            "data.split=[a,b]",
            "experiment=coco_univip",
            "debug=small",
            "+cluster.extra.gres=gpu:2",
            "cluster.setup=['module load cuda']",
        ]
    )

    store(config, HEADER, tmp_path)

    assert load(tmp_path) == config
    assert load_header(tmp_path) == HEADER
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_configuration_is_read_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    store(Config(data=DataConfig(root="/x")), HEADER, tmp_path)
    first = load(tmp_path)
    assert load(tmp_path) is first

    store(Config(data=DataConfig(root="/y")), HEADER, tmp_path)

    assert load(tmp_path).data.root == "/y"


def test_the_file_is_plain_yaml(tmp_path: Path) -> None:
    store(Config(data=DataConfig(root="/x")), HEADER, tmp_path)

    document = yaml.safe_load((tmp_path / FILE_NAME).read_text())

    assert document["run"]["id"] == "univip-01234567"
    assert document["proposals"]["mode"] == "fast"
    assert document["train"]["epochs"] == 800.0


def test_a_file_of_an_older_version_gets_the_defaults_of_new_keys(tmp_path: Path) -> None:
    store(Config(data=DataConfig(root="/x"), train=TrainConfig(seed=5)), HEADER, tmp_path)
    document = yaml.safe_load((tmp_path / FILE_NAME).read_text())
    del document["train"]["global_batch"], document["monitoring"]
    (tmp_path / FILE_NAME).write_text(yaml.safe_dump(document))

    config = load(tmp_path)

    assert (config.train.seed, config.train.global_batch) == (5, 512)


def test_keys_that_said_where_a_run_executes_may_be_gone(tmp_path: Path) -> None:
    config = compose(["data.root=/x", "+cluster.extra.reservation=may", "cluster.partition=gpu"])
    store(config, HEADER, tmp_path)
    document = yaml.safe_load((tmp_path / FILE_NAME).read_text())
    document["cluster"] |= {"shard_time_h": 2.0, "array_parallelism": 50}
    document["cluster"]["nodes"]["spare"] = 1
    document["monitoring"]["gone"] = {"a": 1}
    (tmp_path / FILE_NAME).write_text(yaml.safe_dump(document))

    assert load(tmp_path) == config


@pytest.mark.parametrize("section", ["data", "train", "resilience", None])
def test_a_key_that_is_gone_and_made_the_run_what_it_is_is_refused(
    tmp_path: Path, section: str | None
) -> None:
    store(Config(data=DataConfig(root="/x")), HEADER, tmp_path)
    document = yaml.safe_load((tmp_path / FILE_NAME).read_text())
    (document[section] if section else document)["gone"] = 1
    (tmp_path / FILE_NAME).write_text(yaml.safe_dump(document))

    with pytest.raises(ConfigError, match="gone"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "- 1", "run: 3", "train: {nonsense: 1}\nrun: {}", "{", "run: {id: a, kind: b}"]
)
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(ConfigError, match=r"`config\.yaml` must be as this version"):
        load(tmp_path)


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    store(Config(data=DataConfig(root="/x")), replace(HEADER, format=2), tmp_path)

    with pytest.raises(ConfigError, match="format 2 is newer than 1"):
        load(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(Config(data=DataConfig(root="/old")), HEADER, tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        store(Config(data=DataConfig(root="/new")), HEADER, tmp_path)

    assert load(tmp_path).data.root == "/old"
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_folder_without_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold a config\.yaml, but does not"):
        load(tmp_path)


def test_boxes_lie_in_the_run_beside(tmp_path: Path) -> None:
    train, alone = tmp_path / "train", tmp_path / "alone"
    for path, header in ((train, HEADER), (alone, replace(HEADER, proposals=""))):
        path.mkdir()
        store(Config(data=DataConfig(root="/x")), header, path)

    assert data_dir(train) == tmp_path / "proposals-89abcdef"
    assert data_dir(alone) == alone


def test_on_resume_the_stored_values_rule_but_for_the_site() -> None:
    stored = Config(data=DataConfig(root="/old", max_images=3), train=TrainConfig(seed=1))
    asked = Config(
        data=DataConfig(root="/new", workers=9, max_images=4),
        train=TrainConfig(seed=2, threads=3),
        proposals=replace(Config().proposals, mode=SearchMode.single),
    )
    asked = replace(asked, cluster=replace(asked.cluster, partition="gpu"))

    merged = with_site_of(stored, asked)

    assert merged.data == DataConfig(root="/new", workers=9, max_images=3)
    assert merged.train == TrainConfig(seed=1, threads=3)
    assert merged.proposals.mode is SearchMode.fast
    assert merged.cluster.partition == "gpu"
