"""Limits of single values and of values together, checked once, before anything is written or submitted."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.config import ClusterKind, Config
from univip.config import SEARCH, DataConfig, DataFormat, MethodName
from univip.errors import ConfigError, override


def check(config: Config, given: Collection[str] = ()) -> None:
    """Refuse what no run can be made of.

    Args:
        config: All values.
        given: Keys that were typed.

    Raises:
        ConfigError: Naming the key, its rule and its value; the first that is broken.
    """
    for key, rule, holds in [*_single(config), *_together(config)]:
        if not holds:
            raise ConfigError(
                f"`{key}` must be {rule}, but is {_value(config, key)!r}.",
                where="the command line" if key in given else "its default, or a file of configs/",
                fix=suggestion(key, config),
            )
    for key in ("data.split", "evaluate.split") if config.data.format is DataFormat.folder else ():
        if key in given:
            raise ConfigError(
                f"`{key}` must be left out with data=folder, which takes every photograph below `data.root`, "
                f"but is {_value(config, key)!r}.",
                where="the command line",
                fix=_folder_of_split(config.data) if key == "data.split" else f"leave {key} out",
            )

    for section, extra in (
        ("cluster.extra", config.cluster.extra),
        ("cluster.proposals.extra", config.cluster.proposals.extra),
    ):
        for name, value in extra.items():
            key = f"{section}.{name}"
            if value in ("True", "False"):  # what is left of true and false
                raise ConfigError(
                    f"`{key}` must be text, empty for a flag, but is `{value.lower()}`.",
                    where="the command line" if key in given else "a file of configs/, or the command line",
                    fix=f"\"++{key}=''\"" if value == "True" else f"leave {key} out",
                )


def suggestion(key: str, config: Config | None = None) -> str:
    """An override that is right: with the schema's default, or with what another value asks for."""
    if key == "data.root":
        return f"{key}=/path/to/photographs"
    if key == "views.min_overlap" and config:
        return f"{key}={min(config.proposals.min_sizes)}"
    if key == "cluster.nodes.max" and config and config.cluster.kind is ClusterKind.slurm:
        return f"{key}={config.cluster.nodes.min}"
    value = _value(Config(), key)
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, list):
        return f'"{key}={str(value).replace(" ", "")}"'  # a shell would look for files of such names
    return f"{key}={'null' if value is None else str(value).replace(' ', '')}"


def _folder_of_split(data: DataConfig) -> str:
    """What to type for the photographs of one split of a plain folder."""
    names = [data.split] if isinstance(data.split, str) else data.split
    if data.root and len(names) == 1:
        for folder in (Path(data.root, names[0]), Path(data.root, "images", names[0])):
            if folder.is_dir():
                return f"{override('data.root', folder)}  # instead of data.split"
    return "leave data.split out; or data=coco, for splits that have annotations"


def _single(config: Config) -> list[tuple[str, str, bool]]:
    """Key, rule, whether it holds: of one value at a time."""
    at_least = {
        0: """data.workers data.max_images proposals.processes optim.base_lr optim.weight_decay
            optim.warmup_epochs train.max_steps train.threads checkpoint.every_steps resilience.max_rollbacks
            resilience.max_restarts resilience.skip_window_steps resilience.max_calm_rollbacks
            resilience.calm_steps resilience.collapse_std resilience.max_capsules evaluate.max_images
            cluster.gpus_per_node cluster.workers_per_node cluster.mem_gb
            cluster.proposals.mem_gb""",
        1: """data.max_pixels proposals.max_ratio proposals.shard_images views.num_instances views.trials
            views.max_draws views.min_overlap views.scene_size views.instance_size model.hidden_dim
            model.embedding_dim method.sinkhorn_iterations train.global_batch train.max_images_per_rank
            checkpoint.keep_last resilience.healthy_after_steps
            resilience.max_consecutive_skips resilience.spike_window resilience.max_consecutive_spikes
            resilience.collapse_after_steps resilience.replica_check_every evaluate.neighbours
            evaluate.batch monitoring.every_steps cluster.cpus_per_task
            cluster.proposals.cpus_per_task cluster.proposals.array_parallelism""",
    }
    positive = """train.epochs method.cosine_scale method.sinkhorn_epsilon evaluate.temperature
        resilience.spike_threshold resilience.hang_timeout_s resilience.collective_timeout_s cluster.time_h
        cluster.proposals.time_h checkpoint.mtbf_h proposals.shard_minutes proposals.image_timeout_s"""
    rules = [
        (key, f"at least {limit}", bool(_value(config, key) >= limit))
        for limit, keys in at_least.items()
        for key in keys.split()
    ]
    rules += [
        (key, "greater than 0 and finite", 0 < _value(config, key) < math.inf) for key in positive.split()
    ]
    for key in ("method.momentum", "optim.momentum", "proposals.max_iou"):
        rules.append((key, "between 0 and 1", 0 <= _value(config, key) <= 1))
    return [*rules, *((key, "finite", math.isfinite(value)) for key, value in _floats(config))]


def _floats(section: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the configuration that could be infinite or none at all, by its key."""
    for each in fields(section):
        value = getattr(section, each.name)
        if is_dataclass(value):
            yield from _floats(value, f"{prefix}{each.name}.")
        elif isinstance(value, float):
            yield prefix + each.name, value


def _together(config: Config) -> list[tuple[str, str, bool]]:
    """Key, rule, whether it holds: where the rule is not a number, or depends on another value."""
    sizes, nodes = config.proposals.min_sizes, config.cluster.nodes
    name, mode = config.experiment, config.paths.mode
    return [
        (
            "experiment",
            "letters, digits, `_`, `.` and `-`",
            re.fullmatch(r"[\w.-]*", name, re.ASCII) is not None,
        ),
        (
            "proposals.source",
            f"`{SEARCH}`, or the 12 hexadecimal digits that `univip proposals import` has printed",
            re.fullmatch(rf"{SEARCH}|[0-9a-f]{{12}}", config.proposals.source) is not None,
        ),
        ("proposals.min_sizes", "whole numbers of at least 1, rising", bool(sizes) and _rising([0, *sizes])),
        ("views.min_scale", "greater than 0 and at most 1", 0 < config.views.min_scale <= 1),
        (
            "views.min_overlap",
            f"at least the smallest of `proposals.min_sizes`, {min(sizes, default=0)}",
            config.method.name is MethodName.byol or config.views.min_overlap >= min(sizes, default=0),
        ),
        ("data.split", "a name, or a list of names", _is_split(config.data.split)),
        (
            "resilience.spike_window",
            "at least twice `resilience.max_consecutive_spikes`",
            config.resilience.spike_window >= 2 * config.resilience.max_consecutive_spikes,
        ),
        ("train.seed", "from 0 to 2^63 - 1", 0 <= config.train.seed < 2**63),
        ("evaluate.split", "a name, a list of names, or empty", _is_split(config.evaluate.split or "-")),
        ("cluster.nodes.min", "at least 1", nodes.min >= 1),
        (
            "cluster.nodes.max",
            f"at least `cluster.nodes.min` = {nodes.min}, and 1 without SLURM",
            nodes.max >= nodes.min and (nodes.max == 1 or config.cluster.kind is ClusterKind.slurm),
        ),
        (
            "cluster.gpu_type",
            "empty beside `cluster.gres`, which says the type as well",
            not (config.cluster.gres and config.cluster.gpu_type),
        ),
        ("cluster.signal_delay_s", "from 1 to 65535 seconds", 1 <= config.cluster.signal_delay_s <= 65535),
        (
            "paths.mode",
            "three octal digits, the first of them 7, such as 700",
            re.fullmatch("7[0-7]{2}", mode) is not None,
        ),
    ]


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _rising(numbers: list[int]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


def _is_split(split: Any) -> bool:
    names = [split] if isinstance(split, str) else split
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) and name for name in names)
