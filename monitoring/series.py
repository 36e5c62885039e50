"""What the records of one run amount to: the value of every series of the catalogue.

Pure bookkeeping, fed record by record, the files of a run in any order. It depends on nothing but the
records, so an exporter that was restarted and read everything again gives the same numbers: counters never go
back. Sums are exact for that reason: rounded ones depend on the order, and Prometheus takes the least
decrease for a counter that began anew. Journals are input from outside: a field of the wrong type has no
value, and nothing here raises.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from monitoring.catalog import METRICS, Metric
from monitoring.journal import Record

Labels = tuple[str, ...]  # values, in the order of `Metric.labels`
Cell = tuple[Labels, str]  # labels, and the source that `Metric.per` names
MAX_LABEL_CHARS = 200
MAX_COUNT = 1e18  # what is larger was not counted

# By kind, with the path taken apart: a first scrape may read a hundred thousand records.
_SOURCES: dict[str, list[tuple[Metric, list[str]]]] = defaultdict(list)
for _metric in METRICS:
    for _kind in _metric.kinds:
        _SOURCES[_kind].append((_metric, _metric.path.split(".") if _metric.path else []))


class RunSeries:
    """All series of one run."""

    def __init__(self) -> None:
        # By name of the metric.
        self._newest: dict[str, dict[Cell, tuple[float, Any]]] = {metric.name: {} for metric in METRICS}
        self._counts: dict[str, dict[Cell, float | Fraction]] = {metric.name: {} for metric in METRICS}

    def add(self, record: Record) -> None:
        """Take one record into account, once."""
        for metric, path in _SOURCES.get(record["kind"], ()):
            if not metric.every_rank and record.get("rank") not in (0, None):
                continue
            if metric.when is not None and record.get(metric.when[0]) not in metric.when[1:]:
                continue
            source = _text(record.get(metric.per)) if metric.per else ""
            if metric.type == "info":
                for label in metric.labels:
                    self._keep_newest(metric, ((), label), record["time"], record.get(label))
            elif metric.take == "state":
                self._keep_newest(metric, ((), source), record["time"], record.get(path[0]))
            elif metric.take == "time":
                cell = (_labels(metric, record, ""), source)
                self._keep_newest(metric, cell, record["time"], record["time"])
            elif metric.take == "count":
                self._count(metric, (_labels(metric, record, ""), source), 1.0)
            else:
                for match, value in _numbers(record, path):
                    cell = (_labels(metric, record, match), source)
                    if metric.take == "last":
                        self._keep_newest(metric, cell, record["time"], value)
                    else:
                        self._count(metric, cell, value)

    def samples(self, metric: Metric) -> list[tuple[Labels, float]]:
        """Labels and value of each series of a metric that is neither `info` nor the exporter's own."""
        if metric.take == "epoch":
            return self._epoch()
        newest = self._newest[metric.name]
        if metric.take == "state":
            states = [_text(state) for _, state in newest.values()]
            [known] = metric.labels.values()
            shown = dict.fromkeys([*known, *states]) if states else {}
            return [((state,), float(states.count(state))) for state in shown]
        totals = dict.fromkeys(_known_labels(metric), 0.0) if metric.type == "counter" else {}
        for (labels, _), (_, value) in newest.items():
            totals[labels] = totals.get(labels, 0.0) + value
        for (labels, _), count in self._counts[metric.name].items():
            totals[labels] = totals.get(labels, 0.0) + float(count)
        return list(totals.items())

    def info(self, metric: Metric) -> dict[str, str]:
        """Labels of an `info` metric, empty if nothing is known."""
        newest = {label: _text(value) for (_, label), (_, value) in self._newest[metric.name].items()}
        return {name: newest.get(name, "") for name in metric.labels} if newest else {}

    def _keep_newest(self, metric: Metric, cell: Cell, time: float, value: Any) -> None:
        """Files are read one after the other, so what is read last need not be the newest."""
        cells = self._newest[metric.name]
        if value is not None and (cell not in cells or time >= cells[cell][0]):
            cells[cell] = (time, value)

    def _count(self, metric: Metric, cell: Cell, value: float) -> None:
        if not 0 <= value <= MAX_COUNT:  # NaN too would spoil the counter for good
            return
        cells = self._counts[metric.name]
        if metric.take == "largest":
            cells[cell] = max(cells.get(cell, 0.0), value)
        else:
            cells[cell] = Fraction(value) + cells.get(cell, 0)

    def _epoch(self) -> list[tuple[Labels, float]]:
        names = ("univip_train_data_step", "univip_train_global_batch_images", "univip_data_images")
        data_step, batch, images = (self._newest[name].get(((), ""), (0.0, 0.0))[1] for name in names)
        return [((), data_step * batch / images)] if images > 0 else []


def _known_labels(metric: Metric) -> Iterator[Labels]:
    """The series that a counter shows from its start, so that its first event is an increase."""
    if not metric.labels:
        yield ()
    elif len(metric.labels) == 1:
        [known] = metric.labels.values()
        yield from ((value,) for value in known)


def _labels(metric: Metric, record: Record, match: str) -> Labels:
    if not metric.labels:
        return ()
    if "*" not in metric.path:
        return tuple(_text(record.get(name)) for name in metric.labels)
    return (*(_text(record.get(name)) for name in list(metric.labels)[:-1]), _text(match))


def _numbers(value: Any, path: list[str]) -> Iterator[tuple[str, float]]:
    """The numbers a path leads to, each with what its `*` stands for."""
    if not path:
        if isinstance(value, float) or (type(value) is int and abs(value) <= MAX_COUNT):
            yield "", float(value)
    elif isinstance(value, dict):
        prefix, star, _ = path[0].partition("*")
        if not star:
            yield from _numbers(value.get(prefix), path[1:])
            return
        for key, item in value.items():
            if key.startswith(prefix):
                yield from ((key.removeprefix(prefix), number) for _, number in _numbers(item, path[1:]))


def _text(value: Any) -> str:
    """A label value; lone surrogates, which JSON may hold, would make the whole exposition unreadable."""
    text = str(value) if isinstance(value, str | int | float) else "unknown"
    return text[:MAX_LABEL_CHARS].encode("utf-8", "replace").decode("utf-8")
