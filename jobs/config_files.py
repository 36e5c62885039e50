"""What is wrong in a file of `configs/` that a user wrote, by its key, its value as written, and its file.

Hydra reads these files as well, but says of a mistake little more than in which file it is; and what YAML
makes of `true` or `1:30` is no mistake to it.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields, is_dataclass
from enum import EnumType
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from jobs.config import Config, thawed_schema
from jobs.keys import ALL_KEYS, NEAR, kind, known_keys, nearest
from univip.errors import ConfigError

_GLOBAL = "# @package _global_"


def unreadable(error: Any) -> ConfigError:
    """What YAML refused: of a file of `configs/`."""
    mark = getattr(error, "problem_mark", None)
    return ConfigError(
        f"the file must be YAML, but is not: {getattr(error, 'problem', None) or error}.",
        where=f"{mark.name}, line {mark.line + 1}" if mark else "a file of configs/",
        fix="indent with spaces, close every bracket and quote, and name every key once",
    )


def check_file(path: Path) -> None:
    """Refuse what is wrong in a file by its key and as it is written; Hydra would name only the file.

    Raises:
        ConfigError: With the first mistake.
        yaml.YAMLError: If it cannot be read.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"`{path.name}` must be text in UTF-8, but is not: {error.reason}.",
            where=str(path),
            fix=f"iconv -f latin1 -t utf-8 {shlex.quote(str(path))}  # prints it as such, if it is latin1",
        ) from error
    loaded = OmegaConf.load(path)
    package = re.match(r"\s*#+\s*@package\s+(\S+)", text)
    section = package[1] if package else path.parent.name
    schema: Any = Config
    for name in [] if section == "_global_" else section.split("."):
        schema = get_type_hints(schema).get(name) if is_dataclass(schema) else None
    if not is_dataclass(schema):
        raise ConfigError(
            f"`{path.name}` must begin with `{_GLOBAL}`, but does not.",
            where=str(path),
            fix=f"write `{_GLOBAL}` as its first line",
        )
    if not isinstance(loaded, DictConfig):
        raise ConfigError(
            f"`{path.name}` must be keys with values, but is a list.", where=str(path), fix=ALL_KEYS
        )
    assert isinstance(schema, type)
    found: Any = OmegaConf.to_container(loaded)
    found.pop("defaults", None)  # Hydra's
    written = yaml.load(text, yaml.BaseLoader) if found else {}  # which makes nothing but text
    _check_section(
        found, written, schema, "" if section == "_global_" else f"{section}.", path, thawed_schema()
    )


def _check_section(found: Any, written: Any, schema: type, prefix: str, path: Path, typed: Any) -> None:
    """Refuse the first mistake of a section.

    Args:
        found: Its values.
        written: The same, each as it is written.
        schema: Its dataclass.
        prefix: Its key, with a dot; empty = everything.
        path: The file.
        typed: The whole configuration, which the values are set in: it refuses what has the wrong type.
    """
    hints = get_type_hints(schema)
    for name, value in found.items():
        key, text = f"{prefix}{name}", _written(written, name, value)
        hint = hints.get(str(name))
        if hint is None:
            valid = [each for each, _ in known_keys(schema, prefix)]
            if isinstance(value, dict):
                valid = [f"{prefix}{each}" for each in hints if is_dataclass(hints[each])] or valid
            near = nearest(key, valid, at_least=NEAR)
            nested = near[:1] == [key]  # dots are of the command line
            named = f"; the nearest are {', '.join(near)}" if near else ", and none is near it"
            raise ConfigError(
                f"`{key}` must be written section by section in a file, but is one word."
                if nested
                else f"`{key}` must be a known key, but is not{named}.",
                where=str(path),
                fix=_as_yaml(near[0], value) if near else ALL_KEYS,
            )
        if is_dataclass(hint):
            assert isinstance(hint, type)
            if not isinstance(value, dict):
                first, default = next((each.name, getattr(hint(), each.name)) for each in fields(hint))
                raise _wrong(
                    key,
                    "set key by key",
                    text,
                    path,
                    f"leave {name} out" if value is None else _as_yaml(f"{key}.{first}", default),
                )
            _check_section(value, text, hint, f"{key}.", path, typed)
        elif get_origin(hint) is dict and isinstance(value, dict):
            for option, each in value.items():
                _check_option(f"{key}.{option}", each, _written(text, option, each), hint, path)
        else:
            _check_value(key, value, text, hint, path, typed)


def _written(mapping: Any, name: Any, value: Any) -> Any:
    """How a value is written; itself where another part of the file has it, as with `<<`."""
    return mapping.get(str(name), value) if isinstance(mapping, dict) else value


def _check_option(key: str, value: Any, text: Any, hint: Any, path: Path) -> None:
    """Refuse what is no option of sbatch with its value."""
    takes_null = hint == dict[str, str | None]
    if isinstance(value, bool | list | dict) or (value is None and not takes_null):
        fix = _as_yaml(key, "")
        if value is False or value is None:
            fix = _as_yaml(key, None) if takes_null else f"leave {key} out"
        elif not isinstance(value, bool):
            fix = _as_yaml(key, "...")
        raise _wrong(key, "text, empty for a flag", text, path, fix)
    _refuse_sixties(key, value, text, str, path)


def _check_value(key: str, value: Any, text: Any, hint: Any, path: Path, typed: Any) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _refuse_sixties(key, value, text, hint, path)
    right = OmegaConf.select(typed, key)
    try:
        OmegaConf.update(typed, key, value, merge=False)
    except OmegaConfBaseException as error:
        if isinstance(hint, EnumType):
            right = nearest(str(text), map(str, hint.__members__))[0]
        elif OmegaConf.is_config(right):
            right = OmegaConf.to_container(right)
        if hint == list[str] and isinstance(value, str):
            right = [value]
        raise _wrong(key, kind(hint), text, path, _as_yaml(key, right)) from error


def _refuse_sixties(key: str, value: Any, text: Any, hint: Any, path: Path) -> None:
    """`1:30` is the number 90 to YAML."""
    colons = str(text).count(":")
    if not colons or not isinstance(value, int | float):
        return
    right = text
    if hint in (int, float):
        right = round(value / 60**colons, 4) if key.endswith("_h") else value
    rule = f"{kind(hint)} without colons" if hint in (int, float) else "in quotes"
    raise _wrong(key, rule, text, path, f"{_as_yaml(key, right)}  # YAML reads {text} as {value}")


def _wrong(key: str, rule: str, text: Any, path: Path, fix: str) -> ConfigError:
    said = f"`{text}`" if text != "" else "empty"
    return ConfigError(f"`{key}` must be {rule}, but is {said}.", where=str(path), fix=fix)


def _as_yaml(key: str, value: Any) -> str:
    """A value as a line of a file that has everything."""
    *sections, name = key.split(".")
    written = json.dumps(value, ensure_ascii=False, default=str)
    return "".join(f"{each}: {{" for each in sections) + f"{name}: {written}" + "}" * len(sections)
