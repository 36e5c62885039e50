"""Markup in which nothing but tags is markup: every text and every attribute is scrubbed and escaped."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence
from typing import Any

from monitoring.web.facts import scrub
from monitoring.web.history import finite


def text(value: object) -> str:
    """A value as text of a document."""
    return html.escape(scrub(str(value)), quote=True)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element; `content` is markup already, an underscore in a name stands for a hyphen."""
    given = ""
    for key, value in attributes.items():
        shown = f"{value:.1f}" if isinstance(value, float) else value
        given += f' {key.rstrip("_").replace("_", "-")}="{text(shown)}"'
    return f"<{name}{given}>{content}</{name}>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table; cells are markup already, numeric columns are set to the right."""
    kinds = [{"class_": "num"} if index in numeric else {} for index in range(len(heads))]
    head = "".join(
        tag("th", text(name), scope="col", **kind) for name, kind in zip(heads, kinds, strict=True)
    )
    lines = [
        tag("tr", "".join(tag("td", cell, **kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows
    ]
    return tag("table", tag("thead", tag("tr", head)) + tag("tbody", "".join(lines)))


def count(value: Any) -> str:
    """A whole number with narrow spaces, a dash where there is none."""
    known = finite(value)
    return "–" if known is None else f"{known:,.0f}".replace(",", "\u202f")


def figure(value: Any, digits: int = 4) -> str:
    """A number to some significant digits, a dash where there is none."""
    known = finite(value)
    return "–" if known is None else f"{known:.{digits}g}"


def when(seconds: Any) -> str:
    """A Unix time as people of this machine read it."""
    known = finite(seconds)
    if known is None or not 0 <= known < 1e11:
        return "–"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(known))


def duration(seconds: float | None) -> str:
    """Such as 42.0 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"
