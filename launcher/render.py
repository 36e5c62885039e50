"""What people see: tables, progress, plans. The only module that knows rich, and it is loaded when it draws.

Data goes to stdout and talk to stderr; without a terminal there is no colour, no bar and no moving line.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from launcher.states import State
from launcher.summary import Summary

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod, RenderableType
    from rich.live import Live
    from rich.table import Table

_COLOURS = {
    State.queued: "yellow",
    State.running: "cyan",
    State.done: "green",
    State.failed: "red",
    State.cancelled: "magenta",
    State.stopped: "yellow",
}
_BAR_CELLS = 12
# Of the table of runs, what is left out first where a terminal is narrow; `finish` is the time behind an ETA.
_SPARE = ("bar", "attempt", "finish", "images/s", "loss", "ETA")
_HIDDEN_FOR_PROBLEMS = 2  # of them, before the last problems go below the table
_PROBLEM_CELLS = 30  # a narrower column is hard to read
_GAP_CELLS = 3  # between two columns
_STATE_CELLS = 14  # of a state, before it wraps
_NAMED_DAYS_S = 6 * 86_400.0  # in which the name of a day is enough
_PLAIN_EVERY_S = 5.0
_WIDE_COLUMNS = 240


def say(*lines: str) -> None:
    """Talk: to stderr."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def status_table(summaries: Sequence[Summary]) -> None:
    """One line per run, to stdout."""
    console = _console()
    _print(console, _status(summaries, console))


@contextmanager
def live_status() -> Iterator[Live]:
    """A table that is drawn anew in place; `show` feeds it."""
    from rich.live import Live

    with Live(console=_console(), auto_refresh=False, screen=False) as live:
        yield live


def show(live: Live, summaries: Sequence[Summary], note: str = "") -> None:
    """Draw the table of `live_status`, and a line below it."""
    from rich.console import Group
    from rich.text import Text

    live.update(Group(_status(summaries, live.console), *([Text(note)] if note else [])), refresh=True)


def fact_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, to stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    _print(_console(), table, title=title)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows of figures under their heads, to stdout."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, head in enumerate(heads):
        drawn.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    _print(_console(), drawn, title=title)


class Progress:
    """Progress of one run while somebody waits: a moving line in a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._live: Live | None = None
        self._said = ""
        self._problems: set[str] = set()
        self._next_line_s = 0.0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *ignored: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, summary: Summary) -> None:
        """Show where the run is; call it often."""
        if summary.problem and summary.problem not in self._problems:  # the same photographs fail in turn
            self._problems.add(summary.problem)
            self._console.print(f"! {summary.problem}", markup=False, highlight=False)
        line = progress_line(summary)
        if self._live:
            from rich.text import Text

            self._live.update(Text(line), refresh=True)
        elif line != self._said and time.monotonic() >= self._next_line_s:
            self._said, self._next_line_s = line, time.monotonic() + _PLAIN_EVERY_S
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Progress of a known amount of work, with speed and ETA; call what it gives with the amount done.

    Args:
        what: Such as `reading`.
        total: All of it.
        unit: `bytes`, or what is counted.
    """
    from rich.progress import Progress as Bar

    console = _console(stderr=True)
    started = next_line = time.monotonic()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def tell(done: int) -> None:
            nonlocal next_line
            now = time.monotonic()
            if console.is_terminal:
                bar.update(
                    task, completed=done, description=f"{what}  {_amount(done, total, unit, now - started)}"
                )
            elif now >= next_line + _PLAIN_EVERY_S:
                next_line = now
                console.print(f"{what}  {_amount(done, total, unit, now - started)}", highlight=False)

        yield tell


def _amount(done: int, total: int, unit: str, seconds: float) -> str:
    """Such as `1.2/5.0 GB  45.3 MB/s  ETA 1 min 24 s`."""
    rate = done / max(seconds, 1e-9)
    left = f"ETA {duration((total - done) / rate)}" if done else ""
    if unit == "bytes":
        return f"{done / 1e9:.2f}/{total / 1e9:.2f} GB  {rate / 1e6:.1f} MB/s  {left}"
    return f"{done:,}/{total:,} {unit}  {rate:,.0f} {unit}/s  {left}"


def progress_line(summary: Summary) -> str:
    """One run in one line of plain text."""
    unit = "steps" if summary.shards_done is None else "images"
    parts = [f"{summary.state.stage or summary.state.state:<9}"]
    if summary.done is not None and summary.target and summary.state.stage != "evaluate":
        parts.append(f"{_bar(summary.done, summary.target)} {summary.done}/{summary.target} {unit}")
    if summary.shards_done is not None:
        parts.append(f"{summary.shards_done}/{summary.num_shards} shards")
    if summary.rate is not None:
        parts.append(f"{summary.rate:.1f} images/s")
    if summary.loss is not None:
        terms = " ".join(f"{name} {value:.3f}" for name, value in summary.terms.items())
        parts.append(f"loss {summary.loss:.3f}" + (f" ({terms})" if terms else ""))
    if summary.eta_s is not None:
        parts.append(f"ETA {duration(summary.eta_s)}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Such as 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(unix_s: float) -> str:
    """Such as 2026-03-01 14:05:59, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def _status(summaries: Sequence[Summary], console: Console) -> RenderableType:
    """As much of the table as the terminal is wide for.

    The run, its state, its progress and its last problem are always there: other columns go first, and where
    a column is too narrow for problems they stand below the table.
    """
    from rich.console import Group
    from rich.text import Text

    if not summaries:
        return Text("no run yet")
    problems = [(summary.id, summary.problem) for summary in summaries if summary.problem]
    longest = max((len(problem) for _, problem in problems), default=0)
    beside = _GAP_CELLS + min(_PROBLEM_CELLS, longest) if problems else 0
    shorter = [_SPARE[:count] for count in range(len(_SPARE) + 1)]
    for hidden in shorter[: _HIDDEN_FOR_PROBLEMS + 1]:
        if _width(summaries, hidden) + beside <= console.width:
            return _table(summaries, hidden, has_problems=bool(problems))
    fitting = (hidden for hidden in shorter if _width(summaries, hidden) <= console.width)
    below = [Text(f"! {name}: {problem}", overflow="fold") for name, problem in problems]
    return Group(_table(summaries, next(fitting, _SPARE)), *below)


def _width(summaries: Sequence[Summary], hidden: Sequence[str]) -> int:
    """What the table takes without problems; a long state may wrap."""
    rows = [_cells(summary, hidden) for summary in summaries]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    words = [word for row in rows for word in row["state"].split()]
    widths["state"] = min(widths["state"], max(_STATE_CELLS, *map(len, words)))
    return sum(widths.values()) + _GAP_CELLS * (len(widths) - 1)


def _table(summaries: Sequence[Summary], hidden: Sequence[str], *, has_problems: bool = False) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [_cells(summary, hidden) for summary in summaries]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in rows[0]:
        side: JustifyMethod = "left" if name in ("run", "state", "progress") else "right"
        table.add_column(name, justify=side, overflow="fold", no_wrap=name != "state")
    if has_problems:
        table.add_column("last problem", overflow="fold")
    for summary, row in zip(summaries, rows, strict=True):
        # Text, not markup: names and messages come from files.
        cells = {name: Text(text) for name, text in row.items()}
        cells["state"].stylize(_COLOURS[summary.state.state])
        table.add_row(*cells.values(), *([Text(summary.problem)] if has_problems else []))
    return table


def _cells(summary: Summary, hidden: Sequence[str]) -> dict[str, str]:
    """A run by the heads of the columns."""
    state = summary.state
    progress = finish = ""
    if summary.done is not None and summary.target:
        bar = "" if "bar" in hidden else f"{_bar(summary.done, summary.target)} "
        progress = f"{bar}{summary.done}/{summary.target}"
    if summary.eta_s is not None:
        day = "%a" if summary.eta_s < _NAMED_DAYS_S else "%d %b"
        at = time.strftime(f"{day} %H:%M", time.localtime(time.time() + summary.eta_s))
        finish = duration(summary.eta_s) + ("" if "finish" in hidden else f" ({at})")
    cells = {
        "run": summary.id,
        "state": " ".join(part for part in (str(state.state), state.stage, state.cause) if part),
        "progress": progress,
        "images/s": "" if summary.rate is None else f"{summary.rate:.1f}",
        "loss": "" if summary.loss is None else f"{summary.loss:.4f}",
        "ETA": finish,
        "attempt": str(state.attempt or ""),
    }
    return {name: text for name, text in cells.items() if name not in hidden}


def _bar(done: int, target: int) -> str:
    filled = min(_BAR_CELLS, _BAR_CELLS * done // target)
    return "━" * filled + "·" * (_BAR_CELLS - filled)


def _print(console: Console, drawn: RenderableType, *, title: str = "") -> None:
    """To stdout; in a file or a pipe no line ends in blanks, and none is empty at the top or the end."""
    with console.capture() as captured:
        if (
            title
        ):  # not rich's, which breaks words where a table ends: the name of a run is to be copied whole
            whole = textwrap.fill(title, console.width, break_long_words=False, break_on_hyphens=False)
            console.print(whole, style="italic", markup=False, highlight=False, soft_wrap=True)
        console.print(drawn)
    text = captured.get()
    if not console.is_terminal:
        lines = [line.rstrip() for line in text.splitlines()]
        text = "\n".join(lines).strip("\n") + "\n"
    sys.stdout.write(text)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = _WIDE_COLUMNS  # a file or a pipe has no edge to fold at
    return console
