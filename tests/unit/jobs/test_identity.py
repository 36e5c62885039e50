from dataclasses import dataclass, field, make_dataclass, replace

import pytest

from jobs.config import Config, RunKind
from jobs.identity import changed_keys, config_hash, differing, is_site, run_id
from univip.config import DataConfig, MethodConfig, MethodName, OptimConfig, TrainConfig, ViewsConfig, site

PRINT = "f" * 64


def ids(config: Config) -> tuple[str, str]:
    return run_id(config, PRINT, RunKind.proposals), run_id(config, PRINT, RunKind.train)


def test_the_hash_of_a_configuration_never_changes() -> None:
    """Golden: whoever breaks this makes every user's runs unfindable."""
    changed = Config(
        experiment="coco_univip",
        data=DataConfig(root="/data", split=["train2017", "unlabeled2017"]),
        train=TrainConfig(epochs=200.0, seed=3),
        method=MethodConfig(cosine_scale=1.5),
    )

    assert ids(Config()) == ("proposals-0af54610", "univip-731d0d4e")
    assert ids(changed) == ("proposals-1eb7d9f5", "coco_univip-90f09346")


def test_a_new_key_with_a_default_changes_nothing() -> None:
    grown = make_dataclass(
        "Grown",
        [("new_option", float, field(default=3.0)), ("new_site", str, site("x"))],
        bases=(OptimConfig,),
        frozen=True,
    )
    before = Config(optim=OptimConfig(base_lr=0.3))
    after = replace(before, optim=grown(base_lr=0.3))

    assert ids(after) == ids(before)
    assert ids(replace(before, optim=grown(base_lr=0.3, new_option=4.0)))[1] != ids(before)[1]


def test_where_it_runs_does_not_name_the_run() -> None:
    @dataclass(frozen=True)
    class Moved(DataConfig):
        root: str = site("/elsewhere")
        workers: int = site(9)

    config = Config()
    moved = replace(
        config,
        data=Moved(),
        cluster=replace(config.cluster, partition="gpu"),
        paths=replace(config.paths, runs="/other"),
        checkpoint=replace(config.checkpoint, every_steps=7),
        monitoring=replace(config.monitoring, every_steps=7),
        proposals=replace(config.proposals, shard_images=3, processes=2),
        train=replace(config.train, max_images_per_rank=8, threads=2),
        evaluate=replace(config.evaluate, neighbours=3),
    )

    assert ids(moved) == ids(config)


@pytest.mark.parametrize(
    ("changed", "boxes_too"),
    [
        (Config(train=TrainConfig(seed=1)), False),
        (Config(views=ViewsConfig(trials=5)), False),
        (Config(data=DataConfig(max_images=5)), True),
    ],
)
def test_what_it_computes_names_the_run(changed: Config, boxes_too: bool) -> None:
    before, after = ids(Config()), ids(changed)

    assert after[1] != before[1]
    assert (after[0] != before[0]) == boxes_too


def test_other_photographs_are_another_run() -> None:
    assert run_id(Config(), "a" * 64, RunKind.train) != run_id(Config(), "b" * 64, RunKind.train)


def test_boxes_are_shared_by_every_training_on_them() -> None:
    config = Config()
    other = replace(config, train=TrainConfig(epochs=3), optim=OptimConfig(base_lr=1.0), experiment="x")

    assert ids(other)[0] == ids(config)[0]


def test_how_boxes_are_made_matters_to_univip_only() -> None:
    config = Config()
    bigger = replace(config, proposals=replace(config.proposals, min_sizes=[32]))
    byol, bigger_byol = (
        replace(each, method=MethodConfig(name=MethodName.byol)) for each in (config, bigger)
    )

    assert ids(bigger)[1] != ids(config)[1]
    assert ids(bigger_byol)[1] == ids(byol)[1]


def test_one_value_has_one_spelling() -> None:
    as_text, as_list = (Config(data=DataConfig(split=split)) for split in ("val2017", ["val2017"]))
    whole, fraction = (Config(train=TrainConfig(epochs=epochs)) for epochs in (200, 200.0))

    assert ids(as_text) == ids(as_list)
    assert ids(whole) == ids(fraction)


def test_the_experiment_is_the_first_part_of_the_name_and_nothing_else() -> None:
    named = Config(experiment="mine")

    assert run_id(named, PRINT, RunKind.train).startswith("mine-")
    assert config_hash(named, PRINT, RunKind.train) == config_hash(Config(), PRINT, RunKind.train)


def test_only_what_differs_is_listed() -> None:
    assert changed_keys(Config(train=TrainConfig(seed=3, threads=4))) == {"train.seed": 3}


def test_keys_that_differ_are_named_with_both_values() -> None:
    one = {
        "train": {"seed": 0, "epochs": 200},
        "data": {"split": ["val2017"]},
        "cluster": {"extra": {"a": "1"}},
    }
    other = {"train": {"seed": 1, "epochs": 200.0}, "data": {"split": "val2017"}, "cluster": {"extra": {}}}

    assert differing(one, other) == {"train.seed": (0, 1), "cluster.extra.a": ("1", None)}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.seed", False),
        ("train.threads", True),
        ("data.root", True),
        ("cluster.extra.gres", True),
        ("experiment", True),
        ("run.fingerprint", False),
        ("no.such", False),
    ],
)
def test_a_key_of_the_site_makes_no_other_run(key: str, expected: bool) -> None:
    assert is_site(key) == expected
