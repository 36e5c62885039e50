import shlex
import subprocess
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.checks import check
from jobs.compose import compose, groups, known_keys, nearest
from jobs.config import ClusterKind, Config, PathsConfig, RunHeader, RunKind, load, store
from jobs.identity import changed_keys
from univip.config import Backbone, DataConfig, DataFormat, MethodName, OptimizerName, Precision, SearchMode
from univip.errors import ConfigError

ROOT = "data.root=/photographs"


def test_without_choices_it_is_the_schema_with_its_defaults() -> None:
    assert changed_keys(compose([ROOT])) == {}


def test_the_coco_recipe_is_the_papers() -> None:
    config = compose([ROOT, "experiment=coco_univip"])

    assert config.experiment == "coco_univip"
    assert (config.data.format, config.data.split) == (DataFormat.coco, "train2017")
    assert (config.method.name, config.method.momentum) == (MethodName.univip, 0.99)
    assert config.model.backbone is Backbone.resnet50
    assert (config.optim.name, config.optim.base_lr, config.optim.weight_decay) == (
        OptimizerName.sgd,
        0.2,
        1e-4,
    )
    assert (config.optim.warmup_epochs, config.optim.exclude_bias_and_norm) == (4, False)
    assert (config.train.epochs, config.train.global_batch) == (800, 512)
    assert config.cluster.gpus_per_node * config.train.max_images_per_rank == 512
    assert (config.views.num_instances, config.views.trials, config.proposals.min_sizes) == (4, 20, [64, 96])


def test_the_other_recipes_differ_where_they_should() -> None:
    byol = compose([ROOT, "experiment=coco_byol"])
    plus = compose([ROOT, "experiment=coco_plus_univip"])
    imagenet = compose([ROOT, "experiment=imagenet_univip"])

    assert changed_keys(byol) == {"method.name": MethodName.byol}
    assert changed_keys(plus) == {"data.split": ["train2017", "unlabeled2017"]}
    assert (imagenet.data.format, imagenet.optim.name) == (DataFormat.folder, OptimizerName.lars)
    assert (imagenet.train.global_batch, imagenet.train.epochs) == (4096, 200)
    assert imagenet.optim.exclude_bias_and_norm


def test_debug_small_is_small_whatever_the_experiment() -> None:
    config = compose([ROOT, "experiment=coco_univip", "debug=small"])

    assert config.data.max_images <= 24
    assert config.proposals.mode is SearchMode.single
    assert config.model.backbone is Backbone.tiny
    assert (config.train.max_steps, config.train.precision) == (40, Precision.fp32)


def test_debug_one_step_is_one_step_of_the_real_network() -> None:
    config = compose([ROOT, "debug=one_step"])

    assert (config.train.max_steps, config.model.backbone) == (1, Backbone.resnet50)


def test_the_command_line_has_the_last_word() -> None:
    config = compose([ROOT, "experiment=coco_univip", "debug=small", "train.max_steps=7", "method=byol"])

    assert (config.train.max_steps, config.method.name) == (7, MethodName.byol)


def test_every_experiment_and_debug_option_composes() -> None:
    for name in groups()["experiment"]:
        for debug in ([], *([f"debug={name}"] for name in groups()["debug"])):
            assert compose([ROOT, f"experiment={name}", *debug]).experiment == name


def test_paths_are_absolute_wherever_the_job_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIVIP_RUNS", "here/runs")

    config = compose(["data.root=photographs"])

    assert config.data.root == str(tmp_path / "photographs")
    assert config.paths.runs == str(tmp_path / "here/runs")
    assert compose([ROOT, "paths.runs=/else"]).paths == PathsConfig(runs="/else")


@pytest.mark.parametrize("path", ["photographs", "my photos, 100% (all)", "it's mine", ""])
def test_a_path_below_home_needs_no_quotes_for_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """bash leaves `data.root=~/photographs` as it is typed."""
    monkeypatch.setenv("HOME", str(tmp_path))

    config = compose([f"data.root=~/{path}", "paths.runs=~"])

    assert config.data.root == str(tmp_path / path)
    assert config.paths.runs == str(tmp_path)


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`data\.root` must be a folder, but `~nobody-here/x` begins"):
        compose(["data.root='~nobody-here/x'"])


def test_cluster_options_reach_their_fields() -> None:
    config = compose(
        [ROOT, "cluster=slurm", "cluster.nodes.min=1", "cluster.nodes.max=1", "+cluster.extra.gres=gpu:8"]
    )
    told = compose([ROOT, "+cluster.extra.mail-type=END"])

    assert config.cluster.kind is ClusterKind.slurm
    assert (config.cluster.nodes.min, config.cluster.nodes.max) == (1, 1)
    assert config.cluster.extra == {"gres": "gpu:8"}
    assert told.cluster.extra == {"mail-type": "END"}


def test_boxes_may_ask_for_something_else_or_for_nothing(tmp_path: Path) -> None:
    own = "cluster.proposals"
    extra = f"{own}.extra={{nice:'7',exclusive:null}}"
    with pytest.raises(ConfigError) as refused:
        compose([ROOT, extra])
    assert shlex.split(refused.value.fix) == [f"+{extra}"]  # which a shell would else make several words of

    config = compose([ROOT, f"{own}.partition=cpu", f"{own}.constraint=", f"+{extra}"])

    asked = config.cluster.proposals
    assert (asked.account, asked.partition, asked.constraint) == (None, "cpu", "")
    assert asked.extra == {"nice": "7", "exclusive": None}
    assert compose([ROOT, "+cluster.proposals.extra.exclusive=null"]).cluster.proposals.extra == {
        "exclusive": None
    }
    store(config, RunHeader("a-1", RunKind.train, "f" * 64, 1), tmp_path)
    assert load(tmp_path).cluster == config.cluster


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1", "`optim.lr` must be a known key, but is not; the nearest are optim.base_lr"),
        ("train.epoch=1", "the nearest are train.epochs"),
        ("epochs=1", "train.epochs"),
        ("optim=adam", "`optim` must be one of lars, sgd, but is `adam`"),
        ("experiment=coco_unvip", "but is `coco_unvip`"),
        ("data=/coco", "`data` must be one of coco, folder, but is `/coco`"),
        ("train=3", "`train` must be set key by key"),
        ("train.epochs=many", "`train.epochs` must be a number, but is `many`"),
        ("data.workers=1.5", "`data.workers` must be a whole number, but is `1.5`"),
        ("train.deterministic=perhaps", "`train.deterministic` must be true or false"),
        ("proposals.min_sizes=[a]", "`proposals.min_sizes` must be a list of whole numbers"),
        ("method.transport=balance", "must be one of balanced, paper_literal, but is `balance`"),
        ("nonsense", "`nonsense` must be an override such as"),
        ("data.split=a,b", "`data.split` must be one value, but `data.split=a,b` lists several"),
        ("resume=true", "`resume` must be a known key, but is not, and none is near it."),
        ("foo=bar", "`foo` must be a known key, but is not, and none is near it."),
        ("lr=1", "`lr` must be a known key, but is not; the nearest are optim.base_lr."),
        ("data.split=a(b", "cannot be read as one"),
        ("train.global_batch=0", "`train.global_batch` must be at least 1, but is 0"),
        ("proposals.min_sizes=[96,64]", "`proposals.min_sizes` must be whole numbers of at least 1, rising"),
        ("proposals.min_sizes=[]", "`proposals.min_sizes` must be"),
        ("train.epochs=nan", "`train.epochs` must be greater than 0"),
        ("train.epochs=inf", "`train.epochs` must be greater than 0"),
        ("optim.base_lr=inf", "`optim.base_lr` must be finite, but is inf"),
        ("cluster.mem_gb=inf", "`cluster.mem_gb` must be finite, but is inf"),
        ("cluster.nodes.min=0", "`cluster.nodes.min` must be at least 1"),
        ("cluster.nodes.min=3", "`cluster.nodes.max` must be at least `cluster.nodes.min` = 3"),
        (
            "cluster.nodes.max=2",
            "`cluster.nodes.max` must be at least `cluster.nodes.min` = 1, and 1 without",
        ),
        ("monitoring.port=1", "`monitoring.port` must be a known key, but is not"),
        ("data.split=7", "`data.split` must be a name, or a list of names, but is 7"),
        ("paths.mode=9", "`paths.mode` must be three octal digits"),
        ("method.momentum=1.5", "`method.momentum` must be between 0 and 1, but is 1.5"),
        ("~data.root", "must compose, but does not"),
    ],
)
def test_a_mistake_is_named_with_its_fix(override: str, message: str) -> None:
    overrides = [override] if override == "~data.root" else [ROOT, override]

    with pytest.raises(ConfigError) as caught:
        compose(overrides)

    assert message in caught.value.what
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("key", [key for key, hint in known_keys() if hint is float])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_number_may_be_infinite_or_none_at_all(key: str, value: str) -> None:
    *sections, name = key.split(".")
    parts: list[Any] = [Config(data=DataConfig(root="/photographs"))]
    for section in sections:
        parts.append(getattr(parts[-1], section))
    changed = replace(parts.pop(), **{name: float(value)})
    for section in reversed(sections):
        changed = replace(parts.pop(), **{section: changed})

    with pytest.raises(ConfigError, match=f"`{key}` must be "):
        check(changed)


def test_a_value_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([])

    assert str(caught.value).splitlines() == [
        "`data.root` must be given, but is not.",
        "  where: the command line",
        "  fix:   data.root=/path/to/photographs",
    ]


def test_the_fix_of_an_unreadable_value_can_be_typed() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data.root=/a(b"])

    assert caught.value.fix == "\"data.root='/a(b'\""
    assert compose(["data.root='/a(b'"]).data.root == "/a(b"


@pytest.mark.parametrize(
    ("override", "runs"),
    [
        ("train.seed=0,1,2", ["train.seed=0", "train.seed=1", "train.seed=2"]),
        ("optim.base_lr=0.1,0.2", ["optim.base_lr=0.1", "optim.base_lr=0.2"]),
        ("train.deterministic=true,false", ["train.deterministic=True", "train.deterministic=False"]),
        (
            "method.transport=balanced,paper_literal",
            ["method.transport=balanced", "method.transport=paper_literal"],
        ),
        ("experiment=coco_univip,coco_byol", ["experiment=coco_univip", "experiment=coco_byol"]),
        ("proposals.min_sizes=[48],[64]", ["proposals.min_sizes=[48]", "proposals.min_sizes=[64]"]),
    ],
)
def test_several_values_are_a_loop_of_the_shell(override: str, runs: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([ROOT, override])

    typed = f'univip() {{ echo "$3"; }}; {caught.value.fix.replace(" ...", " pipeline")}'
    said = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == runs
    for each in runs:
        compose([ROOT, "method=byol", each])


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("cluster.partition=a,b", "\"cluster.partition='a,b'\"  # if it is one text with commas"),
        ("data.split=a,b", '"data.split=[a,b]"  # a list'),
        ("proposals.min_sizes=64,96", '"proposals.min_sizes=[64,96]"  # a list'),
        (
            "train.seed=range(0,3)",
            "for seed in ...; do univip submit ... train.seed=$seed; done  # a run each",
        ),
        ("proposals.min_sizes=[a]", '"proposals.min_sizes=[64,96]"'),
        ("proposals.min_sizes=[]", '"proposals.min_sizes=[64,96]"'),
    ],
)
def test_a_key_that_takes_a_list_or_commas_is_given_them_as_a_shell_takes_them(
    override: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([ROOT, override])

    assert caught.value.fix == fix
    if "..." not in fix:
        compose([ROOT, *shlex.split(fix, comments=True)])


def test_a_path_with_spaces_and_signs_is_a_path() -> None:
    assert compose(["data.root='/my photos, 100% (all)'"]).data.root == "/my photos, 100% (all)"


def test_nearest_names_match_the_last_part_too() -> None:
    assert (
        nearest("warmup", ["optim.warmup_epochs", "train.seed", "views.trials"])[0] == "optim.warmup_epochs"
    )


def test_every_checked_limit_accepts_the_default() -> None:
    """A check that refuses the schema's own defaults would refuse everybody."""
    compose([ROOT])


def test_every_leaf_of_the_schema_is_a_known_key() -> None:
    def leaves(section: Any, prefix: str) -> list[str]:
        found = []
        for each in fields(section):
            value = getattr(section, each.name)
            key = prefix + each.name
            found += leaves(value, key + ".") if is_dataclass(value) else [key]
        return found

    assert sorted(key for key, _ in known_keys()) == sorted(leaves(Config(), ""))
