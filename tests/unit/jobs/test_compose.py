import shlex
import shutil
import subprocess
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.checks import check
from jobs.compose import CONFIGS, compose, groups
from jobs.config import ClusterKind, Config, PathsConfig, RunHeader, RunKind, load, store
from jobs.identity import changed_keys
from jobs.keys import known_keys, nearest
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


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, to write others into."""
    copy = tmp_path / "configs"
    shutil.copytree(CONFIGS, copy, ignore=shutil.ignore_patterns("site", "__pycache__"))
    (copy / "site").mkdir()
    monkeypatch.setattr("jobs.compose.CONFIGS", copy)
    return copy


def _refused(path: Path, text: str, *overrides: str) -> ConfigError:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        compose([ROOT, *overrides])
    assert len(str(caught.value).splitlines()) == 3
    assert caught.value.where.startswith(str(path))
    return caught.value


@pytest.mark.parametrize(
    ("cluster", "what", "fix"),
    [
        ("partitoin: short", "`cluster.partitoin` must be a known key", '{partition: "short"}'),
        ("proposals: {typo_h: 3}", "`cluster.proposals.typo_h` must be a known", "{proposals: {time_h: 3}}"),
        ("proposal: {qos: a}", "`cluster.proposal` must be a known key", '{proposals: {"qos": "a"}}'),
        ("nodes.min: 1", "must be written section by section in a file", "{nodes: {min: 1}}"),
        ("time_h: 1h", "`cluster.time_h` must be a number, but is `1h`.", "{time_h: 24.0}"),
        ("time_h: 1:30", "but is `1:30`.", "{time_h: 1.5}  # YAML reads 1:30 as 90"),
        ("kind: slrm", "must be one of local, slurm, but is `slrm`", '{kind: "slurm"}'),
        ("nodes: 2", "`cluster.nodes` must be set key by key, but is `2`.", "{nodes: {min: 1}}"),
        ("setup: a b", "`cluster.setup` must be a list of texts, but is `a b`.", '{setup: ["a b"]}'),
        ("setup:", "`cluster.setup` must be a list of texts, but is empty.", "{setup: []}"),
        ("extra: --exclusive", "must be options with their values", "{extra: {}}"),
        ("extra: {exclusive: yes}", "empty for a flag, but is `yes`.", '{extra: {exclusive: ""}}'),
        ("extra: {nice: [7]}", "`cluster.extra.nice` must be text", '{extra: {nice: "..."}}'),
        ("extra: {begin: 9:30}", "must be in quotes, but is `9:30`.", '{extra: {begin: "9:30"}}  # YAML'),
        (
            "proposals: {extra: {exclusive: false}}",
            "`cluster.proposals.extra.exclusive` must be text, empty for a flag, but is `false`.",
            "{proposals: {extra: {exclusive: null}}}",
        ),
    ],
)
def test_a_mistake_in_the_site_file_is_named_with_what_to_write(
    own: Path, cluster: str, what: str, fix: str
) -> None:
    path = own / "site" / "local.yaml"

    refused = _refused(path, f"# @package _global_\ncluster:\n  {cluster}\n")

    assert what in refused.what
    assert refused.fix.startswith(f"cluster: {fix}")
    if "..." not in refused.fix:
        assert isinstance(yaml.safe_load(refused.fix)["cluster"], dict)
        path.write_text(f"# @package _global_\n{refused.fix}\n", encoding="utf-8")
        compose([ROOT])


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("cluster: {partition: a}", "must begin with `# @package _global_`", "as its first line"),
        ("# ours\n# @package _global_\ncluster: {}", "must begin with", "as its first line"),
        ("", "must begin with", "as its first line"),
        (
            "# @package _global_\ncluster:\n  proposals:\n",
            "`cluster.proposals` must be",
            "leave proposals out",
        ),
        ("# @package _global_\ncluster: {extra: {a: null}}", "`null`", "leave cluster.extra.a out"),
        ("# @package _global_\nnothing_like_it: 1", "none is near it", "--dry-run"),
        ("# @package _global_\n- a", "must be keys with values, but is a list", "--dry-run"),
        ("# @package _global_\ncluster:\n\tnodes: 1", "must be YAML", "indent with spaces"),
        ("# @package _global_\ncluster: {kind: local", "must be YAML", "close every bracket"),
        ("# @package _global_\ntrain: {}\ntrain: {}", "found duplicate key train", "name every key once"),
    ],
)
def test_a_site_file_that_cannot_be_read_as_one_is_refused_by_its_name(
    own: Path, text: str, what: str, fix: str
) -> None:
    refused = _refused(own / "site" / "local.yaml", text)

    assert what in refused.what
    assert fix in refused.fix


def test_a_site_file_in_another_encoding_is_refused(own: Path) -> None:
    (own / "site" / "local.yaml").write_bytes(b"# @package _global_\n# M\xfcller\n")

    with pytest.raises(ConfigError, match=r"`local\.yaml` must be text in UTF-8"):
        compose([ROOT])


def test_an_own_experiment_is_looked_at_where_it_is_asked_for(own: Path) -> None:
    path = own / "experiment" / "mine.yaml"

    refused = _refused(path, "# @package _global_\ntrain: {epoch: 3}\n", "experiment=mine")

    assert refused.fix == "train: {epochs: 3}"
    assert compose([ROOT]).experiment == ""
    data = _refused(own / "data" / "mine.yaml", "splt: a\n", "data=mine")
    assert data.what.startswith("`data.splt` must be a known key")


def test_a_site_file_may_use_what_yaml_and_hydra_offer(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "gpu")
    (own / "site" / "local.yaml").write_text(
        "# @package _global_\ndefaults: [_self_]\n"
        "cluster: {partition: '${oc.env:PLACE}', extra: &all {nice: 7, begin: '9:30', exclusive: ''},\n"
        "  proposals: {extra: {<<: *all, exclusive: null}}, setup: ['a: b']}\n",
        encoding="utf-8",
    )

    cluster = compose([ROOT]).cluster

    assert (cluster.partition, cluster.setup) == ("gpu", ["a: b"])
    assert cluster.extra == {"nice": "7", "begin": "9:30", "exclusive": ""}
    assert cluster.proposals.extra == {"nice": "7", "begin": "9:30", "exclusive": None}


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("cluster.extra.exclusive=null", "'~cluster.extra.exclusive'"),
        ("+cluster.extra.mail-type=null", "leave cluster.extra.mail-type out"),
        ("~cluster.extra.nice", "leave ~cluster.extra.nice out"),
        ("cluster.extra.exclusive=true", "\"++cluster.extra.exclusive=''\""),
        ("+cluster.extra.nice=false", "leave cluster.extra.nice out"),
        ("+cluster.extra.exclusive=user", "++cluster.extra.exclusive=user"),
        ("cluster.extra.nice=7", "+cluster.extra.nice=7"),
        ("cluster.proposals={partition:short}", "cluster.proposals.partition=short"),
        ("cluster.nodes={min:1,max:1}", "cluster.nodes.min=1 cluster.nodes.max=1"),
        ("cluster.proposals=short", "cluster.proposals.account=..."),
        ("cluster.nodes=2", "cluster.nodes.min=..."),
    ],
)
def test_what_is_typed_over_the_site_file_is_refused_with_what_works(
    own: Path, override: str, fix: str
) -> None:
    (own / "site" / "local.yaml").write_text(
        "# @package _global_\ncluster: {extra: {exclusive: ''}}\n", encoding="utf-8"
    )

    with pytest.raises(ConfigError) as caught:
        compose([ROOT, override])

    assert (caught.value.fix, caught.value.where) == (fix, "the command line")
    if "leave" not in fix and "..." not in fix:
        compose([ROOT, *shlex.split(fix)])


def test_a_variable_that_is_not_set_is_named(own: Path) -> None:
    (own / "site" / "local.yaml").write_text(
        "# @package _global_\ncluster: {partition: '${oc.env:NOT_SET_HERE}'}\n", encoding="utf-8"
    )

    with pytest.raises(ConfigError, match=r"NOT_SET_HERE.*`cluster\.partition`"):
        compose([ROOT])
