"""The whole configuration of a run, and the file in the run directory that holds it.

`Config` puts the sections of `univip.config` and `monitoring.config` beside what only a scheduler needs to
know: cluster and paths. Sections and fields marked as *site* say where or how a run executes; they may
change between two attempts and do not enter its identity (`jobs/identity.py`). Torch-free, and OmegaConf is
loaded only to read or write the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jobs.outcomes import read_json
from monitoring.config import MonitoringConfig
from univip.atomic import write_text
from univip.config import (
    CheckpointConfig,
    DataConfig,
    EvaluateConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    ProposalsConfig,
    ResilienceConfig,
    TrainConfig,
    ViewsConfig,
    site,
)
from univip.errors import ConfigError

T = TypeVar("T")
FILE_NAME = "config.yaml"
FILE_FORMAT = 1
INDEX_NAME = "images.arrow"
INDEX_REPORT = "images.json"  # beside the index: images, unusable ones, borders of shards
_SITE = {"site": True}


class ClusterKind(StrEnum):
    """Who runs the jobs."""

    local = "local"
    slurm = "slurm"


@dataclass(frozen=True)
class NodesConfig:
    """Nodes of one training job: it starts with `min` and may use up to `max`."""

    min: int = 1
    max: int = 1


@dataclass(frozen=True)
class ProposalJobsConfig:
    """What the jobs that make the boxes ask for, without GPUs; null means: what training asks for."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_h: float = 2.0  # of one shard of the array
    mem_gb: float = 0.0
    cpus_per_task: int = 8
    array_parallelism: int = 50  # shards that run at once
    # Laid over those of training; null takes one away.
    extra: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterConfig:
    """Where jobs run and what they ask of the scheduler; empty text and 0 mean: do not ask."""

    kind: ClusterKind = ClusterKind.local
    nodes: NodesConfig = field(default_factory=NodesConfig)
    gpus_per_node: int = 8  # asked of SLURM for training and evaluation
    gpu_type: str = ""  # as the site calls it, such as a100
    gres: str = ""  # instead of both, where a site wants that: of training, such as gpu:a100:8,nvme:1
    workers_per_node: int = 0  # training processes on a node; 0 = one per GPU, one if there is none
    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    time_h: float = 24.0  # of training and evaluation; a longer training is requeued
    mem_gb: float = 0.0  # per node
    cpus_per_task: int = 64  # one task per node
    signal_delay_s: int = 120  # warning before the time limit, for a last checkpoint
    # What starts Python on a node, such as [apptainer, exec, --nv, IMAGE, python3]; empty = this Python.
    python: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)  # shell lines before the job, such as `module load cuda`
    extra: dict[str, str] = field(default_factory=dict)  # further sbatch options, without the dashes
    proposals: ProposalJobsConfig = field(default_factory=ProposalJobsConfig)


@dataclass(frozen=True)
class PathsConfig:
    """Where runs are kept."""

    runs: str = "runs"
    mode: str = "700"  # of run directories, octal; of files the same without the right to execute

    @property
    def umask(self) -> int:
        """What to take away from everything that is made in a run directory."""
        return 0o777 & ~int(self.mode, 8)

    @contextmanager
    def as_open(self) -> Iterator[None]:
        """Everything made meanwhile, by processes that are started as well, is as open as `mode` says."""
        before = os.umask(self.umask)
        try:
            yield
        finally:
            os.umask(before)


@dataclass(frozen=True)
class Config:
    """Everything that can be set; `configs/` picks values, the command line has the last word."""

    experiment: str = site("")  # first part of the run's name; empty = the method's name
    data: DataConfig = field(default_factory=DataConfig)
    proposals: ProposalsConfig = field(default_factory=ProposalsConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    # How a finished backbone is looked at does not make it another backbone.
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=_SITE)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig, metadata=_SITE)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=_SITE)
    paths: PathsConfig = field(default_factory=PathsConfig, metadata=_SITE)


class RunKind(StrEnum):
    """What a run directory is for."""

    proposals = "proposals"
    train = "train"


@dataclass(frozen=True)
class RunHeader:
    """What `config.yaml` says about the run itself, in its section `run`.

    Attributes:
        id: Name of the run and of its directory.
        fingerprint: Of the image index the run was asked for; the data must still have it.
        num_images: Usable images of that index, or all photographs of a folder that was only listed.
        proposals: Id of the run beside this one that holds the index and the boxes; empty where the method
            needs no boxes, and the index then lies in this run.
        num_shards: Of a run that makes boxes: decided when it was first asked for; 0 = when it is prepared.
        origin: Id of the run of the same configuration that this one was begun beside; mostly empty.
    """

    id: str
    kind: RunKind
    fingerprint: str
    num_images: int
    proposals: str = ""
    num_shards: int = 0
    origin: str = ""
    format: int = FILE_FORMAT


def store(config: Config, header: RunHeader, run_dir: Path) -> None:
    """Write `config.yaml`, whole or not at all."""
    write_text(run_dir / FILE_NAME, to_yaml(config, header))


def to_yaml(config: Config, header: RunHeader) -> str:
    """The text of `config.yaml`."""
    import yaml

    return str(yaml.safe_dump({"run": _plain(header), **_plain(config)}, sort_keys=False, allow_unicode=True))


def load(run_dir: Path) -> Config:
    """The configuration a run was started with.

    Keys that this version does not know are left out where they say where or how the run executes: whoever
    submits it again says so anew. Elsewhere they made it the run that it is.

    Raises:
        ConfigError: If there is no such run, or another version of this package wrote it.
    """
    return _load(run_dir)[0]


def load_header(run_dir: Path) -> RunHeader:
    """Identity of a run; see `load`."""
    return _load(run_dir)[1]


def read_plain(run_dir: Path) -> dict[str, Any]:
    """`config.yaml` as it lies there, of any version of this package.

    Raises:
        ConfigError: If it is not there, or no mapping.
    """
    import yaml

    path = run_dir / FILE_NAME
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"`{FILE_NAME}` must be readable, but is not: {_first_line(error)}.",
            where=str(path),
            fix="univip status  # lists the runs",
        ) from error
    return found


def data_dir(run_dir: Path) -> Path:
    """Directory with the image index, and the boxes where the method needs them."""
    header = load_header(run_dir)
    return run_dir.parent / header.proposals if header.proposals else run_dir


def num_images(run_dir: Path, header: RunHeader) -> int:
    """Images of a run: of its index, or as many as were found when the run was asked for."""
    report = read_json(data_dir(run_dir) / INDEX_REPORT) or {}
    return int(report.get("images", header.num_images))


def with_site_of(stored: T, requested: T) -> T:
    """`stored` with the site fields of `requested`: another cluster or a moved data set, the same run."""
    changes: dict[str, Any] = {}
    for each in fields(stored):  # type: ignore[arg-type]
        old, new = getattr(stored, each.name), getattr(requested, each.name)
        if each.metadata.get("site"):
            changes[each.name] = new
        elif is_dataclass(old):
            changes[each.name] = with_site_of(old, new)
    return replace(stored, **changes)  # type: ignore[type-var]


def _load(run_dir: Path) -> tuple[Config, RunHeader]:
    path = run_dir / FILE_NAME
    try:
        status = path.stat()
    except OSError:  # reading it will tell
        return _read(path)
    return _read_once(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=8)  # a worker that is started anew asks for it six times, and OmegaConf takes its time
def _read_once(path: Path, _stamp: tuple[int, int, int]) -> tuple[Config, RunHeader]:
    return _read(path)


def _read(path: Path) -> tuple[Config, RunHeader]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        stored = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(stored, dict)
        header = OmegaConf.merge(OmegaConf.structured(RunHeader), stored.pop("run"))
        if header.format > FILE_FORMAT:
            raise ValueError(f"format {header.format} is newer than {FILE_FORMAT}")
        config = OmegaConf.merge(thawed_schema(), _without_unknown_site(stored, Config))
        found = OmegaConf.to_object(config), OmegaConf.to_object(header)
    except FileNotFoundError as error:
        raise ConfigError(
            f"`{path.parent}` must hold a {FILE_NAME}, but does not.",
            where=str(path.parent),
            fix="univip status  # lists the runs",
        ) from error
    except (OmegaConfBaseException, YAMLError, KeyError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"`{FILE_NAME}` must be as this version of univip writes it, but is not: {_first_line(error)}.",
            where=str(path),
            fix="use the version named in environment.json beside it",
        ) from error
    assert isinstance(found[0], Config)
    assert isinstance(found[1], RunHeader)
    return found[0], found[1]


def _without_unknown_site(section: Any, schema: type, *, is_site: bool = False) -> Any:
    """A section as it lies in a file, without the unknown keys of what is marked as site."""
    if not isinstance(section, dict):  # refused later
        return section
    known, types = {each.name: each for each in fields(schema)}, get_type_hints(schema)
    kept = {}
    for name, value in section.items():
        if name in known:
            is_section = isinstance(types[name], type) and is_dataclass(types[name])
            inside = is_site or bool(known[name].metadata.get("site"))
            kept[name] = _without_unknown_site(value, types[name], is_site=inside) if is_section else value
        elif not is_site:  # refused later
            kept[name] = value
    return kept


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def thawed_schema() -> Any:
    """`Config` as a typed OmegaConf node that can be merged into; it makes frozen dataclasses read-only."""
    from omegaconf import DictConfig, OmegaConf

    def thaw(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            if isinstance(child := node._get_node(key), DictConfig):
                thaw(child)

    schema = OmegaConf.structured(Config)
    thaw(schema)
    return schema


def _plain(instance: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of YAML values; `StrEnum` members become their text."""
    return asdict(
        instance, dict_factory=lambda items: {k: str(v) if isinstance(v, StrEnum) else v for k, v in items}
    )
