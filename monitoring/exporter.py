"""`/metrics` for every run under one folder, read from the journals.

One process on the login node serves all runs from their files: compute nodes open no ports, and finished or
dead runs keep their last state. Each scrape first reads what was appended since the one before; by polling,
because network file systems send no notifications. A run that cannot be read is marked by a metric and stops
nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from monitoring.catalog import METRICS, Metric
from monitoring.journal import FOLDER, JournalReader
from monitoring.series import RunSeries
from monitoring.server import Handler, Request, Response

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


def routes(collector: Exporter) -> dict[str, Handler]:
    """What the exporter serves: `/metrics` in the format the client asks for, `/healthz`, and `/`."""
    registry = CollectorRegistry()
    registry.register(collector)

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.accept)
        return Response(encode(registry), content_type)

    return {
        "/metrics": metrics,
        "/healthz": lambda request: Response(b"ok\n"),
        "/": lambda request: Response(b"univip monitor: see /metrics\n"),
    }
