"""`/metrics` for every run under one folder, read from the journals.

One process on the login node serves all runs from their files: compute nodes open no ports, and finished or
dead runs keep their last state. Each scrape first reads what was appended since the one before; by polling,
because network file systems send no notifications. A run that cannot be read is marked by a metric and stops
nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from monitoring.catalog import METRICS, Metric
from monitoring.journal import FOLDER, JournalReader
from monitoring.series import RunSeries

_logger = logging.getLogger(__name__)


class _Run:
    """One run directory: its files, and what they amount to so far."""

    def __init__(self, run_dir: Path) -> None:
        # A file name need not be UTF-8; a label must be.
        self.name = run_dir.name.encode("utf-8", "backslashreplace").decode("utf-8")
        self.series = RunSeries()
        self._reader = JournalReader(run_dir)

    def update(self) -> None:
        """Read what was appended."""
        for record in self._reader.poll():
            self.series.add(record)

    def add_to(self, family: Family, metric: Metric) -> None:
        """Add the series of one metric."""
        if isinstance(family, InfoMetricFamily):
            if texts := self.series.info(metric):
                family.add_metric([self.name], texts)
            return
        assert isinstance(family, GaugeMetricFamily | CounterMetricFamily)
        for labels, value in self._own(metric) if metric.take == "exporter" else self.series.samples(metric):
            family.add_metric([self.name, *labels], value)

    def _own(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        values = {
            "univip_monitoring_damaged_lines_total": float(self._reader.damaged),
            "univip_monitoring_run_readable": float(not self._reader.unreadable),
        }
        return [((), values[metric.name])]


class Exporter(Collector):
    """Collects the metrics of all runs under `runs_root`; register it with a prometheus_client registry."""

    def __init__(self, runs_root: Path) -> None:
        self.runs_root = Path(runs_root)
        self._runs: dict[Path, _Run] = {}
        self._lock = threading.Lock()  # two scrapes must not read the same lines

    def collect(self) -> Iterable[Family]:
        """Every metric of the catalogue with the series of all runs, as of now."""
        with self._lock:
            self._find_runs()
            for run in self._runs.values():
                run.update()
            families = []
            for metric in METRICS:
                family = _family(metric)
                for run in self._runs.values():
                    run.add_to(family, metric)
                families.append(family)
        return families

    def _find_runs(self) -> None:
        """Runs that appeared are added, runs whose folder is gone are forgotten."""
        try:
            found = sorted(path for path in self.runs_root.iterdir() if _has_journal(path))
        except OSError as error:
            _logger.warning("cannot list runs: %s", error)
            return
        self._runs = {path: self._runs.get(path) or _Run(path) for path in found}


def _has_journal(path: Path) -> bool:
    """What makes a folder a run; one we may not look into counts, so that it shows up as unreadable."""
    try:
        (path / FOLDER).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _logger.debug("cannot look into %s: %s", path, error)
    return True


def _family(metric: Metric) -> Family:
    labels = ["run", *metric.labels]
    if metric.type == "info":
        return InfoMetricFamily(metric.name.removesuffix("_info"), metric.help, labels=["run"])
    name = metric.name.removesuffix("_total")
    unit = metric.unit if name.endswith(f"_{metric.unit}") else ""
    if metric.type == "counter":
        return CounterMetricFamily(name, metric.help, labels=labels, unit=unit)
    return GaugeMetricFamily(name, metric.help, labels=labels, unit=unit)


class _Server(ThreadingMixIn, WSGIServer):
    """Answers a health check while a scrape reads files."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    """One line on the terminal for each scrape helps nobody."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def start(runs_root: Path, port: int = 0, host: str = "127.0.0.1") -> WSGIServer:
    """Serve in a background thread; stop with `shutdown()` and `server_close()`.

    Args:
        runs_root: The folder of the run directories; may not exist yet.
        port: 0 takes a free one; `server_port` of the result says which.
        host: Address to listen at; beware, `0.0.0.0` shows the runs to everybody who can reach this machine.

    Raises:
        OSError: If the address cannot be taken.
    """
    server = _listen(runs_root, port, host)
    threading.Thread(target=server.serve_forever, name="exporter", daemon=True).start()
    return server


def serve(runs_root: Path, port: int, host: str = "127.0.0.1") -> None:
    """Serve until interrupted; arguments and errors as `start`."""
    with _listen(runs_root, port, host) as server:
        server.serve_forever()


def _listen(runs_root: Path, port: int, host: str) -> WSGIServer:
    registry = CollectorRegistry()
    registry.register(Exporter(runs_root))
    return make_server(host, port, _application(registry), _Server, _QuietHandler)


def _application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    """`/metrics` in the format the client asks for (OpenMetrics too), and `/healthz`."""
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        status, body = ("200 OK", b"ok\n") if path == "/healthz" else ("404 Not Found", b"see /metrics\n")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [body]

    return answer
