"""The keys of the configuration: which there are, which was meant, and what each takes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from enum import EnumType
from typing import Any, get_origin, get_type_hints

from jobs.config import Config

NEAR = 0.6  # likeness of a name that may have been meant
ALL_KEYS = "univip submit ... --dry-run  # prints every key with its value"
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    str | None: "text, or null",
    list[int]: "a list of whole numbers, such as [64,96]",
    list[str]: "a list of texts",
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


def kind(hint: Any) -> str:
    """What a value of that type must be."""
    if isinstance(hint, EnumType):
        return f"one of {', '.join(str(name) for name in hint.__members__)}"
    if get_origin(hint) is dict:
        return "options with their values, such as {nice: 7}"
    return _TYPE_NAMES.get(hint, str(hint))
