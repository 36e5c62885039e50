"""From what was typed to a checked `Config`: Hydra's overrides over the files of `configs/`.

Hydra finds most mistakes, but names them in its own terms; here every one becomes a `ConfigError` that says
which key or option was meant. Hydra is loaded when a request is composed, and by nothing else.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import EnumType
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import configs
from jobs.checks import check, suggestion
from jobs.config import Config, thawed_schema
from univip.errors import ConfigError

CONFIGS = Path(configs.__file__).parent
_PRIMARY = "univip"
_NEAR = 0.6  # likeness of a name that may have been meant
_ALL_KEYS = "univip submit ... --dry-run  # prints every key with its value"
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    str | None: "text, or null",
    list[int]: "a list of whole numbers, such as [64,96]",
    list[str]: "a list of texts",
}


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

    overrides = [_with_home_as_text(each) for each in overrides]
    keys = dict(_parse(overrides))
    ConfigStore.instance().store("schema", thawed_schema())
    try:
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


def known_keys(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key that takes a value, with its type."""
    hints = get_type_hints(schema)
    for each in fields(schema):
        hint = hints[each.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from known_keys(hint, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, hint


def nearest(wrong: str, valid: Iterable[str], *, at_least: float = 0.0) -> list[str]:
    """The three valid names most like `wrong`, as a whole or in their last part.

    Args:
        wrong: What was typed.
        valid: What could have been.
        at_least: Likeness, from 0 to 1, below which a name is left out.
    """

    def likeness(name: str) -> float:
        typed = wrong.rpartition(".")[2]
        whole = difflib.SequenceMatcher(None, name, wrong).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], typed).ratio()
        word = typed in re.split("[._]", name)
        return max(whole, last - 0.1, 0.8 * word)

    return [name for name in sorted(valid, key=likeness, reverse=True) if likeness(name) >= at_least][:3]


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
    sections = {key.partition(".")[0] for key in schema if "." in key}
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
                    fix=f"{next(name for name in schema if name.startswith(key + '.'))}=...",
                )
            near = nearest(key, schema if "." in key else [*options, *schema], at_least=_NEAR)
            named = f"; the nearest are {', '.join(near)}" if near else ", and none is near it"
            raise ConfigError(
                f"`{key}` must be a known key, but is not{named}.",
                where="the command line",
                fix=f"{near[0]}={override.partition('=')[2] or '...'}" if near else _ALL_KEYS,
            )
        yield key, value


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
    cause = error.__cause__ or error
    key = str(getattr(cause, "full_key", None) or "").partition("[")[0]  # of a list, not of its element
    where = "the command line" if key in given else str(CONFIGS)
    hint = dict(known_keys()).get(key)
    if hint is None:
        first = str(error).splitlines()[0]
        added = re.search(r"\+\S+", str(error))  # Hydra's advice for a key below `cluster.extra`
        return ConfigError(
            f"the configuration must compose, but does not: {first}",
            where=where,
            fix=shlex.quote(added.group()) if added else "univip submit --help",
        )
    quoted = re.search(r"[Vv]alue '(.*?)'", str(cause))
    value = given.get(key) or (quoted.group(1) if quoted else "?")
    if isinstance(hint, EnumType):
        names = [str(name) for name in hint.__members__]
        what, fix = f"one of {', '.join(names)}", f"{key}={nearest(value, names)[0]}"
    else:
        what, fix = _TYPE_NAMES.get(hint, str(hint)), suggestion(key)
    return ConfigError(f"`{key}` must be {what}, but is `{value}`.", where=where, fix=fix)


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
