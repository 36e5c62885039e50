"""`/metrics` for every run under one folder, read from the journals.

One process on the login node serves all runs from their files: compute nodes open no ports, and finished or
dead runs keep their last state. Each scrape first reads what was appended since the one before. A run that
cannot be read is marked by a metric and stops nothing.

The text is made here and not by prometheus_client: of a thousand runs a few are alive, and only their lines
are made anew.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from monitoring.catalog import METRICS, Metric
from monitoring.lines import FOLDER
from monitoring.reader import RunReader
from monitoring.series import text_of
from monitoring.server import Handler, Request, Response

FORGET_AFTER_S = 600.0  # a file system that is away for a moment must not end the series of its runs
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})
_logger = logging.getLogger(__name__)


# Values of the metrics that the exporter computes, by name and labels.
_Own = dict[str, dict[tuple[str, ...], int]]


class _Run:
    """One run directory, and its lines of the exposition."""

    def __init__(self, run_dir: Path) -> None:
        # A file name need not be UTF-8; a label must be.
        name = run_dir.name.encode("utf-8", "backslashreplace").decode("utf-8")
        self.last_seen = 0.0  # s
        self.reader = RunReader(run_dir)
        self.lines: dict[str, str] = {}  # by name of the metric
        self._label = f'run="{name.translate(_ESCAPES)}"'
        self._told: _Own = {}

    def update(self, jobs: Counter[tuple[str, ...]], *, is_there: bool) -> None:
        """Read what was appended, and write anew what it changes."""
        has_changed = is_there and self.reader.update()
        own: _Own = {
            "univip_slurm_jobs": dict(jobs),
            "univip_monitoring_damaged_lines_total": {(): self.reader.damaged},
            "univip_monitoring_run_readable": {(): int(is_there and self.reader.is_readable)},
        }
        if has_changed or own != self._told:
            self.lines = {metric.name: self._lines(metric, own) for metric in METRICS}
            self._told = own

    def _lines(self, metric: Metric, own: _Own) -> str:
        if metric.type == "info":
            texts = self.reader.series.info(metric)
            return self._line(metric.name, texts.items(), 1.0) if texts else ""
        samples = (
            own[metric.name].items() if metric.take == "exporter" else self.reader.series.samples(metric)
        )
        return "".join(
            self._line(metric.name, zip(metric.labels, labels, strict=True), float(value))
            for labels, value in samples
        )

    def _line(self, name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
        texts = "".join(f',{label}="{text.translate(_ESCAPES)}"' for label, text in labels)
        return f"{name}{{{self._label}{texts}}} {_number(value)}\n"


class Exporter:
    """The metrics of all runs under `runs_root`, which may not exist yet."""

    def __init__(self, runs_root: Path, jobs: Callable[[], Iterable[tuple[str, str, str]]] = tuple) -> None:
        """Read nothing yet.

        Args:
            runs_root: The folder of the run directories.
            jobs: Run, state and reason of each job of a scheduler that waits or runs; asked at each scrape,
                so it must answer at once. Given by the launcher, who alone knows schedulers.
        """
        self.runs_root = Path(runs_root)
        self._jobs = jobs
        self._runs: dict[Path, _Run] = {}
        self._lock = threading.Lock()  # two scrapes must not read the same lines

    @property
    def bytes_read(self) -> int:
        """Of all journals, so far."""
        return sum(run.reader.bytes_read for run in self._runs.values())

    @property
    def damaged(self) -> int:
        """Lines met so far that are no records, of all journals."""
        return sum(run.reader.damaged for run in self._runs.values())

    def exposition(self, *, openmetrics: bool = False) -> bytes:
        """Every metric of the catalogue with the series of all runs, as of now."""
        with self._lock:
            self._update()
            runs = list(self._runs.values())
            text = "".join(
                part
                for metric in METRICS
                for part in (_header(metric, openmetrics), *(run.lines[metric.name] for run in runs))
            )
        return (text + "# EOF\n" * openmetrics).encode()

    def _update(self) -> None:
        """Runs that appeared are added, runs that have been gone for long are forgotten."""
        now = time.monotonic()
        jobs: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
        for name, state, reason in self._jobs():
            jobs[name][text_of(state), text_of(reason)] += 1
        try:
            # A run that waits for its first start has no journal yet.
            found = {path for path in self.runs_root.iterdir() if path.name in jobs or _has_journal(path)}
        except OSError as error:
            _logger.warning("cannot list runs: %s", error)
            found = set()
        for path in found - self._runs.keys():
            self._runs[path] = _Run(path)
        for path in found:
            self._runs[path].last_seen = now
        kept = {
            path: run
            for path, run in self._runs.items()
            # Of a run that only had jobs, there is nothing to keep.
            if now - run.last_seen <= (FORGET_AFTER_S if run.reader.bytes_read else 0)
        }
        self._runs = dict(sorted(kept.items()))
        for path, run in self._runs.items():
            run.update(jobs[path.name], is_there=path in found)


def routes(exporter: Exporter) -> dict[str, Handler]:
    """What is served: `/metrics` in the format the client asks for, and `/healthz`."""

    def metrics(request: Request) -> Response:
        openmetrics = "application/openmetrics-text" in request.accept
        return Response(exporter.exposition(openmetrics=openmetrics), OPENMETRICS if openmetrics else PLAIN)

    return {
        "/metrics": metrics,
        "/healthz": lambda request: Response(b"ok\n"),
    }


def _has_journal(path: Path) -> bool:
    """What makes a folder a run; one we may not look into counts, so that it shows up as unreadable."""
    try:
        (path / FOLDER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _logger.debug("cannot look into %s: %s", path, error)
    return True


def _header(metric: Metric, openmetrics: bool) -> str:
    name, kind, unit = metric.name, metric.type, ""
    if openmetrics:
        name = name.removesuffix("_total").removesuffix("_info")
        unit = f"# UNIT {name} {metric.unit}\n" if name.endswith(f"_{metric.unit}") else ""
    elif kind == "info":
        kind = "gauge"
    return f"# HELP {name} {metric.help}\n# TYPE {name} {kind}\n{unit}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
