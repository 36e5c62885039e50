"""From what was typed to a checked `Config`: Hydra's overrides over the files of `configs/`.

Hydra finds most mistakes, but names them in its own terms; here every one becomes a `ConfigError` that says
which key or option was meant. Hydra is loaded when a request is composed, and by nothing else.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import EnumType
from pathlib import Path
from typing import Any, get_origin

import configs
from jobs.checks import check, suggestion
from jobs.config import Config, thawed_schema
from jobs.config_files import check_file, unreadable
from jobs.keys import ALL_KEYS, NEAR, kind, known_keys, nearest
from univip.errors import ConfigError
from univip.errors import override as typed

CONFIGS = Path(configs.__file__).parent
_PRIMARY = "univip"


def compose(overrides: Sequence[str], *, needs_data: bool = True) -> Config:
    """The configuration that `overrides` ask for, complete and checked.

    Args:
        overrides: Hydra's grammar: `key=value`, `group=option`, `+key=value`; and `key=~/path`.
        needs_data: Refuse a request that names no photographs; else `data.root` is then empty.

    Raises:
        ConfigError: For an unknown key or option, a wrong type or value, or a value that is missing.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides = [_with_home_as_text(each) for each in overrides]
    keys = dict(_parse(overrides))
    ConfigStore.instance().store("schema", thawed_schema())
    try:
        for path in _own_files(keys):
            check_file(path)
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose(_PRIMARY, overrides=overrides)
        if not needs_data and OmegaConf.is_missing(composed.data, "root"):
            composed.data.root = ""
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(
                f"`{missing[0]}` must be given, but is not.",
                where="the command line",
                fix=" ".join(map(suggestion, missing)),
            )
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, keys) from error
    except YAMLError as error:
        raise unreadable(error) from error
    assert isinstance(config, Config)
    if (
        not config.data.root and needs_data
    ):  # such as an unset variable of the shell; it would mean the current folder
        raise ConfigError(
            "`data.root` must be a folder, but is empty.",
            where="the command line" if "data.root" in keys else str(CONFIGS),
            fix=suggestion("data.root"),
        )
    config = _absolute(config)
    check(config, keys)
    return config


def groups() -> dict[str, list[str]]:
    """Options of every configuration group, by group."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONFIGS.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def _with_home_as_text(override: str) -> str:
    """`key=~/path` with the path in quotes: a shell leaves the `~` there to us, and Hydra cannot read it."""
    key, _, value = override.partition("=")
    if value != "~" and not value.startswith("~/"):
        return override
    quoted = value.replace("'", "\\'")
    return f"{key}='{quoted}'"


def _parse(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Key and written value of each override; refuses what Hydra would take for something else."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    schema = dict(known_keys())
    sections = {key[: dot.start()] for key in schema for dot in re.finditer(r"\.", key)}
    options = groups()
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException as error:
            key, equals, value = override.partition("=")
            raise ConfigError(
                f"`{override}` must be an override such as `train.epochs=200`, but cannot be read as one.",
                where="the command line",
                fix=f"\"{key}='{value}'\"" if equals else f"{override}=..." if override else "leave it out",
            ) from error
        key, value = parsed.key_or_group, str(parsed.value())
        if parsed.is_sweep_override():
            raise ConfigError(
                f"`{key}` must be one value, but `{override}` lists several.",
                where="the command line",
                fix=_several(key, parsed, None if key in options else schema.get(key, str)),
            )
        if key in options:
            if value not in options[key]:
                raise ConfigError(
                    f"`{key}` must be one of {', '.join(options[key])}, but is `{value}`.",
                    where="the command line",
                    fix=f"{key}={nearest(value, options[key])[0]}",
                )
        elif key not in schema and not _is_below_a_dict(key, schema):
            if key in sections:
                raise ConfigError(
                    f"`{key}` must be set key by key, but is given `{value}` as a whole.",
                    where="the command line",
                    fix=_key_by_key(key, parsed.value(), schema),
                )
            near = nearest(key, schema if "." in key else [*options, *schema], at_least=NEAR)
            named = f"; the nearest are {', '.join(near)}" if near else ", and none is near it"
            raise ConfigError(
                f"`{key}` must be a known key, but is not{named}.",
                where="the command line",
                fix=f"{near[0]}={override.partition('=')[2] or '...'}" if near else ALL_KEYS,
            )
        yield key, value


def _key_by_key(section: str, value: Any, schema: Iterable[str]) -> str:
    """What to type for a section that was given as a whole."""
    pairs = value.items() if isinstance(value, dict) else ()
    words = [typed(f"{section}.{name}", each) for name, each in pairs if f"{section}.{name}" in schema]
    return " ".join(words) or f"{next(key for key in schema if key.startswith(section + '.'))}=..."


def _several(key: str, parsed: Any, hint: Any) -> str:
    """What to type for several values: quotes or a list where the key takes those, else a loop of the shell.

    Args:
        key: The key or the group.
        parsed: Hydra's override, a sweep.
        hint: Type of the key; None of a group.
    """
    text = parsed.input_line.partition("=")[2]
    if hint in (str, str | None):
        return f"\"{key}='{text}'\"  # if it is one text with commas"
    if (hint is Any or get_origin(hint) is list) and not text.startswith("["):
        return f'"{key}=[{text}]"  # a list'
    values = shlex.join(parsed.sweep_string_iterator()) if parsed.is_choice_sweep() else "..."
    name = key.rpartition(".")[2]
    return f"for {name} in {values}; do univip submit ... {key}=${name}; done  # a run each"


def _is_below_a_dict(key: str, schema: dict[str, Any]) -> bool:
    return get_origin(schema.get(key.rpartition(".")[0])) is dict


def _explain(error: Exception, given: dict[str, str]) -> ConfigError:
    """What Hydra or OmegaConf refused, in the terms of the schema."""
    from omegaconf.errors import InterpolationResolutionError, ValidationError

    cause = error.__cause__ or error
    full_key = str(getattr(cause, "full_key", None) or "")
    key = full_key.partition("[")[0]  # of a list, not of its element
    is_typed = "override" in str(error) or any(f"'{each}'" in str(error) for each in given)
    where = "the command line" if key in given or is_typed else str(CONFIGS)
    schema = dict(known_keys())
    if isinstance(cause, ValidationError) and _is_below_a_dict(key, schema):
        is_there = f"override {key}=" in str(error)  # else it is added
        return ConfigError(
            f"`{key}` must be text, empty for a flag, but is `null`.",
            where=where,
            fix=shlex.quote(f"~{key}") if is_there else f"leave {key} out",
        )
    hint = schema.get(key)
    if hint is None or isinstance(cause, InterpolationResolutionError):
        # Hydra's advice for a key below `cluster.extra`.
        added = re.search(r"use (\+.*)$|: '(\+\+.*)'$", str(error), re.MULTILINE)
        told = (error,) if added else (error, cause)
        first = dict.fromkeys(str(each).splitlines()[0] for each in told)
        gone = re.match("Could not delete .*'(.*)' does not exist", str(error))
        fix = f"leave ~{gone[1]} out" if gone else "univip submit --help"
        return ConfigError(
            f"the configuration must compose, but does not: {' '.join(first)}"
            + (f" (`{key}`)" if hint else ""),
            where=where,
            fix=shlex.quote(added[1] or added[2]) if added else fix,
        )
    quoted = re.search(r"[Vv]alue '(.*?)'", str(cause))
    value = given.get(key) or (quoted.group(1) if quoted else "?")
    fix = f"{key}={nearest(value, hint)[0]}" if isinstance(hint, EnumType) else suggestion(key)
    return ConfigError(f"`{key}` must be {kind(hint)}, but is `{value}`.", where=where, fix=fix)


def _own_files(given: dict[str, str]) -> list[Path]:
    """The files of this request that its user may have written: the site's, and the options typed."""
    chosen = {"site": "local", **{name: given[name] for name in groups() if name in given}}
    paths = [CONFIGS / group / f"{option}.yaml" for group, option in chosen.items()]
    return [path for path in paths if path.is_file()]


def _absolute(config: Config) -> Config:
    """Paths as the jobs must see them, wherever they start."""
    root = config.data.root
    return replace(
        config,
        data=replace(config.data, root=_from_top("data.root", root) if root else ""),
        # Empty, as an unset variable leaves it, means the default here as it does for `univip status`.
        paths=replace(config.paths, runs=_from_top("paths.runs", config.paths.runs or "runs")),
    )


def _from_top(key: str, path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # `~name` of nobody
        raise ConfigError(
            f"`{key}` must be a folder, but `{path}` begins in the home of nobody here.",
            where="the command line, or a file of configs/",
            fix=suggestion(key),
        ) from error
