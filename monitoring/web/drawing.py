"""Pictures of the report: a curve with its extremes and faults, and what happened when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from monitoring.web.history import History
from monitoring.web.markup import count, figure, tag, text, when

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b2d00", "#555d66")
_DASHES = ("none", "7 3", "2 2", "9 3 2 3", "12 4", "4 4", "1 3", "9 2 2 2")
_WIDTH, _HEIGHT = 520, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 14, 20
_MAX_TICKS = 300
_TO_THE_LEFT = {"text_anchor": "end"}
_GRID, _GOOD, _BAD = "#e9ecf0", "#00734f", "#b84300"
_SIGN_WIDTH = 12
_SIGNS = {  # the worst first
    "rollback": ("◀", "#b84300"),
    "restart": ("◉", "#8f6200"),
    "interruption": ("‖", "#8f6200"),
    "skip": ("▼", "#97457b"),
    "checkpoint_failed": ("▣", "#b84300"),
    "corruption": ("◆", "#b84300"),
    "preflight": ("✖", "#b84300"),
    "collapse": ("✦", "#b84300"),
    "stall": ("⧗", "#8f6200"),
    "straggler": ("»", "#5b6470"),
    "gpu_error": ("↯", "#b84300"),
}
# As `univip/data/sheet.py` draws them: words, colour, dashes.
SAMPLE_OUTLINES = (
    ("scene 1", "#56b4e9", "none"),
    ("scene 2", "#e69f00", "7 4"),
    ("box from the search", "#ffffff", "none"),
    ("random box, for want of one from the search", "#cc79a7", "2 3"),
)
_OTHER_SIGN = ("▪", "#5b6470")


def sign(kind: str) -> str:
    """The sign of a kind of fault, in its colour."""
    shape, colour = _SIGNS.get(kind, _OTHER_SIGN)
    return tag("span", shape, style=f"color:{colour}")


def swatch(colour: str, dash: str) -> str:
    """A piece of a line as it looks on a photograph."""
    ground = tag("rect", width=22, height=10, fill="#1a1a1a")
    line = tag("path", d="M0 5H22", stroke=colour, stroke_width=3, stroke_dasharray=dash)
    return tag("svg", ground + line, class_="swatch", viewBox="0 0 22 10", aria_hidden="true")


class _Frame:
    """Where values stand in a picture."""

    def __init__(self, xs: Sequence[float], values: Sequence[float], *, is_log: bool) -> None:
        self.is_log = is_log
        low, high = self._scaled(min(values)), self._scaled(max(values))
        margin = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - margin, high + margin
        self.first, self.span = xs[0], max(xs[-1] - xs[0], 1.0)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def x(self, value: float) -> float:
        return _LEFT + (value - self.first) / self.span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (self.high - self._scaled(value)) / (self.high - self.low)
        return _TOP + share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> str:
        parts = []
        for level in round_values(self.low, self.high, at_least=2):
            y = _TOP + (self.high - level) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM)
            parts += [
                tag("path", d=f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", stroke=_GRID),
                tag(
                    "text",
                    figure(10**level if self.is_log else level, 3),
                    x=_LEFT - 6,
                    y=y + 4,
                    **_TO_THE_LEFT,
                ),
            ]
        for at in round_values(self.first, self.first + self.span, at_least=3):
            parts.append(tag("text", count(at), x=self.x(at), y=_HEIGHT - 5, text_anchor="middle"))
        return "".join(parts)


def round_values(low: float, high: float, *, at_least: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values."""
    power = 10.0 ** math.floor(math.log10((high - low) / at_least))
    step = next((each * power for each in (5, 2) if high - low >= each * power * at_least), power)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(
    title: str,
    xs: Sequence[float],
    curves: dict[str, dict[str, Any]],
    faults: list[dict[str, Any]],
    *,
    is_log: bool,
) -> str:
    """Curves over data steps.

    Args:
        title: What they are.
        xs: Abscissas of the buckets.
        curves: By name, what `monitoring.web.buckets.reduce` gives.
        faults: What `monitoring.web.facts.faults` gives.
        is_log: Whether the ordinate is logarithmic.
    """
    known = [
        value
        for curve in curves.values()
        for name in ("min", "max")
        for value in curve[name]
        if _is_usable(value, is_log)
    ]
    if not known:
        return ""
    frame = _Frame(xs, known, is_log=is_log)
    parts = [frame.axes(), *_faults(frame, faults)]
    legend = []
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        dash = _DASHES[index % len(_DASHES)] if len(curves) > 1 else "none"
        parts.append(_curve(frame, xs, curve, colour, dash))
        last = next((value for value in reversed(curve["mean"]) if value is not None), None)
        line = tag("path", d="M0 5H22", stroke=colour, stroke_width=2, stroke_dasharray=dash)
        swatch = tag("svg", line, class_="swatch", viewBox="0 0 22 10") if len(curves) > 1 else ""
        legend.append(f"{swatch} {text(name)} <b>{figure(last)}</b>")
    caption = tag("figcaption", f"{text(title)} {tag('small', ' '.join(legend))}")
    drawing = tag("svg", "".join(parts), viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return tag("figure", caption + drawing)


def timeline(history: History, tries: list[dict[str, Any]], faults: list[dict[str, Any]]) -> str:
    """Attempts as bars, faults as signs, checkpoints as ticks, over wall time."""
    times = [moment for each in tries for moment in (each["started"], each["ended"]) if moment is not None]
    times += [each["time"] for each in faults]
    if not times:
        return ""
    first, span = min(times), max(max(times) - min(times), 1.0)

    def place(moment: float) -> float:
        return float(80 + (moment - first) / span * 990)

    parts = [
        tag("text", name, x=0, y=y) for name, y in (("attempts", 20), ("faults", 46), ("checkpoints", 70))
    ]
    for each, after in zip(tries, [*tries[1:], None][: len(tries)], strict=True):
        ended = each["ended"] or (after["started"] if after else first + span)
        width = max(2.0, place(ended) - place(each["started"]))
        label, is_good = f"{each['number']} {each['stage']}", each["exit_code"] in (0, 75)
        look = {"fill": "#e0f2ec", "stroke": _GOOD} if is_good else {"fill": "#fbe9df", "stroke": _BAD}
        if each["ended"] is None and after is None:
            look = {"fill": "#e1eff8", "stroke": COLOURS[0]}
        start = place(each["started"])
        parts.append(tag("rect", tag("title", text(label)), x=start, y=6, width=width, height=18, **look))
        if width > 7 * len(label):
            parts.append(tag("text", text(label), x=start + 5, y=19))
    for fault in faults:
        shape, colour = _SIGNS.get(fault["kind"], _OTHER_SIGN)
        words = shape + tag("title", text(f"{when(fault['time'])}: {fault['text']}"))
        parts.append(
            tag("text", words, x=place(fault["time"]), y=47, text_anchor="middle", style=f"fill:{colour}")
        )
    ticks = [each["time"] for each in list(history.checkpoints)[-_MAX_TICKS:]]
    path = "".join(f"M{place(at):.1f} 58v14" for at in ticks if first <= at <= first + span)
    parts.append(tag("path", d=path, stroke=_GOOD))
    for share, anchor in ((0.0, "start"), (0.33, "middle"), (0.67, "middle"), (1.0, "end")):
        at = first + share * span
        parts.append(tag("text", when(at), x=place(at), y=92, text_anchor=anchor))
    return tag("svg", "".join(parts), viewBox="0 0 1080 98", role="img", aria_label="timeline")


def bar(shares: Sequence[tuple[str, float, str]]) -> str:
    """One bar of parts: name, share and colour."""
    x, parts = 0.0, []
    for name, share, colour in shares:
        look = {"x": x, "y": 0, "width": 1000 * share, "height": 14, "fill": colour}
        parts.append(tag("rect", tag("title", text(name)), **look))
        x += 1000 * share
    return tag("svg", "".join(parts), class_="bar", viewBox="0 0 1000 14", preserveAspectRatio="none")


def _curve(frame: _Frame, xs: Sequence[float], curve: dict[str, Any], colour: str, dash: str) -> str:
    """A line of means, a band of extremes, and a cross for what is not finite."""
    lows, highs = [], []
    path, is_open = "", False
    for x, mean, low, high in zip(xs, curve["mean"], curve["min"], curve["max"], strict=True):
        if _is_usable(low, frame.is_log) and _is_usable(high, frame.is_log):
            lows.append(f"{frame.x(x):.1f},{frame.y(low):.1f}")
            highs.append(f"{frame.x(x):.1f},{frame.y(high):.1f}")
        is_drawn = _is_usable(mean, frame.is_log)
        if is_drawn:
            path += f"{'L' if is_open else 'M'}{frame.x(x):.1f} {frame.y(mean):.1f}"
        is_open = is_drawn
    bad = [
        tag("text", f"✕ {text(what)}", x=frame.x(xs[bucket]), y=_HEIGHT - _BOTTOM - 4, style=f"fill:{_BAD}")
        for bucket, what in curve["bad"]
    ]
    band = tag("polygon", points=" ".join([*highs, *reversed(lows)]), fill=colour, opacity=0.2)
    line = tag("path", d=path, fill="none", stroke=colour, stroke_width=1.5, stroke_dasharray=dash)
    return band + line + "".join(bad)


def _faults(frame: _Frame, faults: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A sign and a line for each; in a crowd the worst are seen, the table has all."""
    kinds = list(_SIGNS)
    shown = [each for each in faults if each["kind"] in kinds and each["data_step"] is not None]
    taken: list[float] = []
    for fault in sorted(shown, key=lambda each: kinds.index(each["kind"])):
        at, (shape, colour) = fault["data_step"], _SIGNS[fault["kind"]]
        x = frame.x(at)
        is_inside = frame.first <= at <= frame.first + frame.span
        if not is_inside or any(abs(x - other) < _SIGN_WIDTH for other in taken):
            continue
        taken.append(x)
        line = f"M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"
        yield tag("path", d=line, stroke=colour, stroke_dasharray="3 3", opacity=0.6)
        yield tag("text", shape, x=x, y=_TOP - 3, text_anchor="middle", style=f"fill:{colour}")


def _is_usable(value: float | None, is_log: bool) -> bool:
    return value is not None and (value > 0 or not is_log)
