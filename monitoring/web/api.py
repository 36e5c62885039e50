"""The page and what it shows: handlers for `monitoring/server.py`.

    /  /static/...                     the page
    /api/runs                          every run at a glance
    /api/runs/<run>                    one run: attempts, faults and their cost, results
    /api/runs/<run>/series?keys=&x=step|time&points=&since=&from=&to=
    /api/runs/<run>/log?file=          last lines of what a process printed
    /api/runs/<run>/report             `report.html`, as of now
    /api/runs/<run>/samples            the picture of the last samples
    /api/runs/<run>/config             configuration, and which keys differ from the defaults

A run is named by an entry of the folder of runs, never by a path. Text that came from files is scrubbed of
absolute paths and secrets (`monitoring/web/facts.py`), and the page puts it on the screen as text only.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.lines import FOLDER
from monitoring.server import Handler, Request, Response
from monitoring.web import buckets, facts
from monitoring.web.history import History
from monitoring.web.report import report
from monitoring.web.spark import Sparks

STATIC = Path(__file__).parent / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Nothing but our own files: whatever a run is called, it cannot become script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
_FILES = ("config.yaml", FOLDER)  # either makes a folder a run
_REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'"
}
_MAX_HISTORIES = 32  # a few MB each
_MAX_POINTS = 2_000
_MAX_KEYS = 40
_LOOK_AGAIN_S = 2.0
_LOOKING_S = 1.0  # for one answer
_SHARDS = 5_000

_logger = logging.getLogger(__name__)


class _NotFoundError(Exception):
    """There is nothing by this name."""


class _BadQueryError(Exception):
    """A parameter is not what it must be."""


@dataclass
class _Seen:
    """A history, and since when it was not looked at."""

    history: History
    folder: int  # inode: a folder made anew is another journal
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Look:
    """What the launcher said of a run, when, and how its files looked then."""

    asked: float
    signature: tuple[int, ...]
    row: dict[str, Any]


class Page:
    """Answers for all runs under one folder."""

    def __init__(
        self,
        runs_root: Path,
        look: Callable[[Path], dict[str, Any]],
        changed: Callable[[Path], dict[str, Any]],
    ) -> None:
        """Read nothing yet.

        Args:
            runs_root: The folder of the run directories; may not exist yet.
            look: State and progress of a run, as `univip status --json` gives them. Given by the launcher,
                who alone knows who owns a run.
            changed: Keys of a run's configuration that differ from the defaults, and their values.
        """
        self.runs_root = Path(runs_root)
        self._look = look
        self._changed = changed
        self._lock = threading.Lock()
        self._histories: OrderedDict[Path, _Seen] = OrderedDict()
        self._looking = threading.Lock()
        self._looks: dict[Path, _Look] = {}
        self._sparks = Sparks()

    def routes(self) -> dict[str, Handler]:
        """What the page needs, for the table of a server."""
        return {"/": self.answer, "/api/": self.answer, "/static/": self.answer}

    def answer(self, request: Request) -> Response:
        """The answer to any path; never raises for what is asked or found."""
        parts = request.path.split("/")[1:]
        try:
            if parts[:2] == ["api", "runs"] and parts[3:] == ["report"]:
                return self._report(self.find(parts[2]))
            if parts[:2] == ["api", "runs"] and parts[3:] == ["samples"]:
                return _picture(self.find(parts[2]))
            if parts[:2] == ["api", "runs"]:
                return _json(200, self._api(parts[2:], request.query))
            return _static(parts)
        except _NotFoundError as error:
            return _json(404, {"error": str(error)})
        except _BadQueryError as error:
            return _json(400, {"error": str(error)})

    def _api(self, parts: list[str], query: Mapping[str, str]) -> Any:
        if parts in ([], [""]):
            rows, is_complete = self.runs()
            return {"now": time.time(), "runs": rows, "is_complete": is_complete}
        run_dir = self.find(parts[0])
        views: dict[str, Callable[[Path, Mapping[str, str]], Any]] = {
            "": self._run,
            "series": self._series,
            "log": self._log,
            "config": self._config,
        }
        name = parts[1] if len(parts) > 1 else ""
        if len(parts) > 2 or name not in views:
            raise _NotFoundError("no such view of a run")
        return views[name](run_dir, query)

    def find(self, name: str) -> Path:
        """The run directory of this name."""
        for path in self._run_dirs():
            if _name(path) == name:
                return path
        raise _NotFoundError("no such run")

    def runs(self) -> tuple[list[dict[str, Any]], bool]:
        """One row per run, and whether all have been looked at.

        Looking takes a while for a thousand runs: those that wait longest come first, and who asks again gets
        more.
        """
        with self._looking:
            run_dirs = {path: _changed_ns(path) for path in self._run_dirs()}
            for gone in [path for path in list(self._looks) if path not in run_dirs]:
                self._looks.pop(gone, None)
            never = _Look(-math.inf, (), {})
            deadline = time.monotonic() + _LOOKING_S
            for path in sorted(
                run_dirs, key=lambda path: (self._looks.get(path, never).asked, -run_dirs[path])
            ):
                self._glance(path)
                if time.monotonic() > deadline:
                    break
            rows = [self._looks[path].row for path in run_dirs if path in self._looks]
            rows += [{"run": _name(path), "state": "unread"} for path in run_dirs if path not in self._looks]
            is_complete = len(self._looks) == len(run_dirs)
        return [{**row, "counts": None, "terms": None} for row in rows], is_complete

    @contextmanager
    def history(self, run_dir: Path) -> Iterator[History]:
        """The journal of a run as of now; nobody else changes it meanwhile."""
        try:
            folder = (run_dir / FOLDER).stat().st_ino
        except OSError:
            folder = 0
        with self._lock:
            seen = self._histories.get(run_dir)
            if seen is None or seen.folder != folder:
                seen = self._histories[run_dir] = _Seen(History(run_dir), folder)
            self._histories.move_to_end(run_dir)
            while len(self._histories) > _MAX_HISTORIES:
                self._histories.popitem(last=False)
        with seen.lock:
            seen.history.update()
            yield seen.history

    def _run_dirs(self) -> list[Path]:
        try:
            found = sorted(self.runs_root.iterdir())
        except OSError:
            return []
        return [path for path in found if any((path / name).exists() for name in _FILES)]

    def _glance(self, run_dir: Path) -> dict[str, Any]:
        """What the launcher says, asked again when something changed or may have."""
        signature = tuple(_changed_ns(run_dir / name) for name in ("", "attempts", FOLDER, "results"))
        before = self._looks.get(run_dir)
        now = time.monotonic()
        if before is not None and before.signature == signature:
            is_live = before.row.get("state") in ("running", "queued")
            if not is_live or now - before.asked < _LOOK_AGAIN_S:
                return before.row
        try:
            row = {**self._look(run_dir), "spark": self._sparks.of(run_dir)}
        except Exception as error:  # noqa: BLE001 - one damaged run must not hide the others
            _logger.warning("cannot look at run %s: %s", run_dir.name, error)
            row = {"run": _name(run_dir), "state": "unreadable", "problem": "its files cannot be read"}
        row["changed_at"] = max(signature) / 1e9
        cleaned: dict[str, Any] = facts.clean(row)
        self._looks[run_dir] = _Look(now, signature, cleaned)
        return cleaned

    def _run(self, run_dir: Path, query: Mapping[str, str]) -> Any:
        with self.history(run_dir) as history:
            return facts.clean(self._described(run_dir, history))

    def _described(self, run_dir: Path, history: History) -> dict[str, Any]:
        glance = self._glance(run_dir)
        tries = facts.attempts(run_dir)
        is_over = glance.get("state") not in ("running", "queued")
        rounds = [record for record in history.events if record["kind"] == "round"]
        return {
            **glance,
            "now": time.time(),
            "facts": history.run,
            "keys": history.keys(),
            "attempts": tries,
            "rounds": [
                {name: record.get(name) for name in ("time", "attempt", "round", "world_size")}
                for record in rounds
            ],
            "faults": facts.faults(history, tries),
            "counts": dict(history.counts),
            "time_spent": facts.time_spent(history, tries, is_over=is_over, now=time.time()),
            "checkpoints": [
                {
                    name: record.get(name)
                    for name in ("time", "data_step", "bytes", "blocked_s", "background_s")
                }
                for record in history.checkpoints
            ],
            "evaluations": [
                {name: value for name, value in record.items() if name not in ("v", "kind", "seq", "rank")}
                for record in history.evaluations
            ],
            "results": facts.results(run_dir),
            "shards": sorted(history.shards.values(), key=lambda shard: int(shard["shard"]))[:_SHARDS],
            "gpus": [history.gpus[node] for node in sorted(history.gpus)],
            "samples": history.samples,
            "picture": facts.samples_shown(history),
            "damaged_lines": history.damaged,
            "unreadable": history.unreadable,
        }

    def _series(self, run_dir: Path, query: Mapping[str, str]) -> Any:
        axis = query.get("x", "step")
        if axis not in ("step", "time"):
            raise _BadQueryError("`x` must be step or time.")
        points = int(_number(query, "points", 600, 2, _MAX_POINTS))
        first, last = _number(query, "from", -math.inf), _number(query, "to", math.inf)
        asked = query.get("keys", "")
        with self.history(run_dir) as history:
            known = history.keys()
            keys = [key for key in asked.split(",") if key in known] if asked else known[:_MAX_KEYS]
            return _curves(history, keys, axis, points, (first, last), query.get("since", ""))

    def _log(self, run_dir: Path, query: Mapping[str, str]) -> Any:
        files = facts.log_files(run_dir)
        name = query.get("file") or (files[0] if files else "")
        if name and name not in files:
            raise _NotFoundError("no such log")
        try:
            lines = facts.log_tail(run_dir, name) if name else []
        except OSError:
            raise _NotFoundError("this log cannot be read") from None
        return {"files": facts.clean(files), "file": facts.clean(name), "lines": lines}

    def _report(self, run_dir: Path) -> Response:
        with self.history(run_dir) as history:
            text = report(run_dir, history, self._differing(run_dir), self._glance(run_dir))
        return Response(text.encode(), "text/html; charset=utf-8", headers=_REPORT_HEADERS)

    def _config(self, run_dir: Path, query: Mapping[str, str]) -> Any:
        return {
            "config": facts.configuration(run_dir),
            "changed": [facts.scrub(key) for key in self._differing(run_dir)],
            "overrides": facts.overrides(run_dir),
        }

    def _differing(self, run_dir: Path) -> list[str]:
        try:
            return sorted(map(str, self._changed(run_dir)))
        except Exception as error:  # noqa: BLE001 - of another version, or damaged; its text is shown
            _logger.debug("no defaults to compare run %s with: %s", run_dir.name, error)
            return []


def _curves(
    history: History, keys: list[str], axis: str, points: int, window: tuple[float, float], since: str
) -> dict[str, Any]:
    """The curves in a window of the abscissa; of the whole one, only what a reader lacks."""
    rows, generation = history.rows(axis)
    start, stop = _within(history.x(axis)[rows], window)
    size = buckets.bucket_size(stop - start, points)
    begin = start
    if start == 0 and stop == len(rows):  # a part is always sent whole
        begin = _resume(since, history.id, generation, size, len(rows))
    firsts = buckets.edges(begin, stop, size)
    found = {
        "x": axis,
        "size": size,
        "start": begin // size if begin > start else 0,
        "cursor": f"{history.id}.{generation}.{size}.{max(0, stop - 1) // size}",
        "records": len(rows),
        **_drawn(history, keys, rows, firsts, stop, axis),
    }
    if axis == "step":
        gone = np.flatnonzero(history.is_superseded())
        gone = gone[np.argsort(history.x(axis)[gone], kind="stable")]
        start, stop = _within(history.x(axis)[gone], window)
        firsts = buckets.edges(start, stop, size)
        found["abandoned"] = _drawn(history, keys, gone, firsts, stop, axis)
    return found


def _within(x: buckets.Floats, window: tuple[float, float]) -> tuple[int, int]:
    """Where in ascending abscissas a window begins and ends."""
    return int(np.searchsorted(x, window[0], "left")), int(np.searchsorted(x, window[1], "right"))


def _drawn(
    history: History, keys: list[str], rows: buckets.Rows, firsts: buckets.Rows, stop: int, axis: str
) -> dict[str, Any]:
    """Abscissas, of the last record of each bucket, and the curves."""
    ends = np.append(firsts[1:], stop)[: len(firsts)] - 1
    return {
        "xs": buckets.numbers(history.x(axis)[rows[ends]], digits=14),
        "series": {key: buckets.reduce(history.column(key), rows, firsts, stop) for key in keys},
    }


def _resume(cursor: str, history: str, generation: int, size: int, num_rows: int) -> int:
    """First row that a reader with this cursor lacks; 0 if what it has is no beginning of what there is."""
    parts = cursor.split(".")
    if parts[:3] != [history, str(generation), str(size)] or len(parts) != 4:
        return 0
    begin = int(parts[3]) * size if parts[3].isascii() and parts[3].isdigit() and len(parts[3]) < 12 else 0
    return begin if begin < num_rows else 0


def _number(
    query: Mapping[str, str], name: str, default: float, least: float = -math.inf, most: float = math.inf
) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise _BadQueryError(f"`{name}` must be a number.")
    return min(max(value, least), most)


def _name(path: Path) -> str:
    """Name of a run; that of a file need not be UTF-8."""
    return path.name.encode("utf-8", "backslashreplace").decode("utf-8")


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _static(parts: list[str]) -> Response:
    """A file of the page; only those that lie in its folder have a name here."""
    names = ["index.html"] if parts == [""] else parts[1:]
    for path in STATIC.iterdir():
        if [path.name] == names and path.suffix in _TYPES:
            return Response(path.read_bytes(), f"{_TYPES[path.suffix]}; charset=utf-8", headers=_HEADERS)
    raise _NotFoundError("no such file")


def _picture(run_dir: Path) -> Response:
    """The picture of the last samples. The page asks again only when there is another one."""
    data = facts.picture(run_dir)
    if data is None:
        raise _NotFoundError("no picture of samples")
    return Response(data, "image/webp")


def _json(status: int, document: Any) -> Response:
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return Response(text.encode(), "application/json", status)
