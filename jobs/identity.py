"""Which run a request means: `<experiment>-<hash8>`.

The same request must find the same run after a new release, from another cluster and with the photographs
moved; so the hash covers the keys whose value differs from the schema's default (a new key with a default
changes nothing), leaves out everything marked as site, and takes the fingerprint of the image index instead
of its path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from jobs.config import Config, RunKind, load, load_header, num_images
from univip.config import SEARCH, MethodName

IDENTITY_FORMAT = 1
_SEARCH_KEYS = ("proposals.mode", "proposals.engine")


def run_id(config: Config, fingerprint: str, kind: RunKind) -> str:
    """Name of the run that `config` asks for on the images with this fingerprint."""
    name = "proposals" if kind is RunKind.proposals else config.experiment or str(config.method.name)
    return f"{name}-{config_hash(config, fingerprint, kind)[:8]}"


def config_hash(config: Config, fingerprint: str, kind: RunKind) -> str:
    """SHA-256, hexadecimal, of what the run computes."""
    changed = changed_keys(config)
    if config.proposals.source != SEARCH:  # how a search would be done says nothing about these boxes
        changed = {key: value for key, value in changed.items() if key not in _SEARCH_KEYS}
    if kind is RunKind.proposals:  # a run of its own, shared by every training on the same boxes
        changed = {key: value for key, value in changed.items() if key.startswith(("data.", "proposals."))}
    elif config.method.name is MethodName.byol:
        changed = {key: value for key, value in changed.items() if not key.startswith("proposals.")}
    document = {"format": IDENTITY_FORMAT, "kind": str(kind), "fingerprint": fingerprint, "changed": changed}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def run_facts(run_dir: Path) -> dict[str, Any]:
    """What each stage writes to the journal of what the run is; metrics are labelled with it."""
    config, header = load(run_dir), load_header(run_dir)
    method = str(config.method.name)
    return {
        "experiment": config.experiment or method,
        "method": method,
        "config_hash": header.id.rpartition("-")[2],
        "num_images": num_images(run_dir, header),
    }


def changed_keys(section: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration whose value differs from the schema's default, without site fields."""
    changed: dict[str, Any] = {}
    for each in fields(section):
        key, value = prefix + each.name, getattr(section, each.name)
        if each.metadata.get("site"):
            continue
        if is_dataclass(value):
            changed |= changed_keys(value, key + ".")
        elif value != (each.default_factory() if callable(each.default_factory) else each.default):
            changed[key] = _canonical(value)
    return changed


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration of nested mappings, such as a `config.yaml`, by dotted key."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, with both; None for a key that one of them lacks."""
    mine, theirs = flat(one), flat(other)
    return {
        key: (mine.get(key), theirs.get(key))
        for key in mine | theirs
        if _canonical(mine.get(key)) != _canonical(theirs.get(key))
    }


def is_site(key: str, schema: type = Config) -> bool:
    """Whether a dotted key says where or how a run executes, and so makes no other run."""
    name, _, rest = key.partition(".")
    found = next((each for each in fields(schema) if each.name == name), None)
    if found is None:
        return False
    if found.metadata.get("site"):
        return True
    section = get_type_hints(schema)[name]
    return isinstance(section, type) and is_dataclass(section) and is_site(rest, section)


def _canonical(value: Any) -> Any:
    """One spelling for one value: 200.0 as 200, and a list of one split as that split."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return _canonical(value[0]) if len(value) == 1 else [_canonical(item) for item in value]
    return value
