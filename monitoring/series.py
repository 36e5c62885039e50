"""What the records of one run amount to: the value of every series of the catalogue.

Pure bookkeeping, fed record by record, one `RunSeries` for each source (a rank, an agent, a shard), whose
files follow one another; `merged` puts the sources of a run together, in any order. It depends on nothing but
the records, so an exporter that was restarted gives the same numbers: counters never go back. Sums are whole
millionths for that reason: rounded ones depend on the order, and Prometheus takes the least decrease for a
counter that began anew. Journals are input from outside: a field of the wrong type has no value, and nothing
here raises.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from monitoring.catalog import METRICS, Metric
from monitoring.kinds import TOTALS
from monitoring.lines import Record

Labels = tuple[str, ...]  # values, in the order of `Metric.labels`
Cell = tuple[Labels, str]  # labels, and the source that `Metric.per` names
MAX_LABEL_CHARS = 200
MAX_CELLS = 10_000  # of one metric; a journal with more is no journal of ours
MAX_COUNT = 1e18  # what is larger was not counted
_MILLION = 1_000_000

# By kind, with the path taken apart and the labels that are fields: a first scrape may read a hundred
# thousand records.
_SOURCES: dict[str, list[tuple[Metric, list[str], list[str]]]] = defaultdict(list)
for _metric in METRICS:
    _fields = list(_metric.labels)[:-1] if "*" in _metric.path else list(_metric.labels)
    for _kind in _metric.kinds:
        _SOURCES[_kind].append((_metric, _metric.path.split(".") if _metric.path else [], _fields))


_METRIC = {metric.name: metric for metric in METRICS}
_NO_CELL: Cell = ((), "")


class RunSeries:
    """All series of one source, or of a run."""

    def __init__(self) -> None:
        # By name of the metric. Sums are millionths.
        self._newest: dict[str, dict[Cell, tuple[float, float | str]]] = defaultdict(dict)
        self._counts: dict[str, dict[Cell, float]] = defaultdict(dict)

    def add(self, record: Record) -> None:
        """Take one record into account, once, in the order of writing."""
        if record["kind"] == TOTALS:
            self._take(record)
        for metric, path, fields in _SOURCES.get(record["kind"], ()):
            if not metric.every_rank and record.get("rank") not in (0, None):
                continue
            if metric.when is not None and record.get(metric.when[0]) not in metric.when[1:]:
                continue
            source = text_of(record.get(metric.per)) if metric.per else ""
            if metric.type == "info":
                for label in metric.labels:
                    self._set_text(metric, ((), label), record["time"], record.get(label))
            elif metric.take == "state":
                self._set_text(metric, ((), source), record["time"], record.get(path[0]))
            elif metric.take == "time":
                self._set(metric, (_labels(record, fields), source), record["time"], record["time"])
            elif metric.take == "count":
                self._count(metric, (_labels(record, fields), source), 1.0)
            else:
                labels, is_starred = _labels(record, fields), len(fields) < len(metric.labels)
                for match, value in _numbers(record, path):
                    cell = ((*labels, text_of(match)) if is_starred else labels, source)
                    if metric.take == "last":
                        self._set(metric, cell, record["time"], value)
                    else:
                        self._count(metric, cell, value)

    def totals(self) -> dict[str, Any]:
        """Fields of a `totals` record, from which `add` knows all this."""
        return {
            "newest": {
                name: [[*cell, *value] for cell, value in cells.items()]
                for name, cells in self._newest.items()
            },
            "counts": {
                name: [[*cell, count] for cell, count in cells.items()]
                for name, cells in self._counts.items()
            },
        }

    def raise_to(self, other: RunSeries) -> None:
        """Let no counter be less than in `other`."""
        for name, cells in other._counts.items():
            mine = self._counts[name]
            for cell, count in cells.items():
                mine[cell] = max(count, mine.get(cell, 0))

    def samples(self, metric: Metric) -> list[tuple[Labels, float]]:
        """Labels and value of each series of a metric that is neither `info` nor the exporter's own."""
        if metric.take == "epoch":
            return self._epoch()
        newest = self._newest.get(metric.name, {})
        if metric.take == "state":
            states = [str(state) for _, state in newest.values()]
            [known] = metric.labels.values()
            shown = dict.fromkeys([*known, *states]) if states else {}
            return [((state,), float(states.count(state))) for state in shown]
        totals = dict.fromkeys(_known_labels(metric), 0.0) if metric.type == "counter" else {}
        for (labels, _), (_, value) in newest.items():
            totals[labels] = totals.get(labels, 0.0) + float(value)
        for (labels, _), count in self._counts.get(metric.name, {}).items():
            share = count / _MILLION if metric.take == "sum" else count
            totals[labels] = totals.get(labels, 0.0) + share
        return list(totals.items())

    def info(self, metric: Metric) -> dict[str, str]:
        """Labels of an `info` metric, empty if nothing is known."""
        newest = {label: str(value) for (_, label), (_, value) in self._newest.get(metric.name, {}).items()}
        return {name: newest.get(name, "") for name in metric.labels} if newest else {}

    def _set_text(self, metric: Metric, cell: Cell, time: float, value: Any) -> None:
        if value is not None:
            self._set(metric, cell, time, text_of(value))

    def _set(self, metric: Metric, cell: Cell, time: float, value: float | str) -> None:
        cells = self._newest[metric.name]
        if cell in cells or len(cells) < MAX_CELLS:
            cells[cell] = (time, value)

    def _count(self, metric: Metric, cell: Cell, value: float) -> None:
        if not 0 <= value <= MAX_COUNT:  # NaN too would spoil the counter for good
            return
        cells = self._counts[metric.name]
        if cell not in cells and len(cells) >= MAX_CELLS:
            return
        if metric.take == "largest":
            cells[cell] = max(cells.get(cell, 0.0), value)
        else:
            cells[cell] = cells.get(cell, 0) + (round(value * _MILLION) if metric.take == "sum" else 1)

    def _take(self, record: Record) -> None:
        """What a `totals` record says, in place of what is known; but no counter goes back."""
        before = RunSeries()
        before._counts, self._counts = self._counts, defaultdict(dict)
        for metric, cell, values in _cells(record.get("newest")):
            is_text = metric.type == "info" or metric.take == "state"
            match values:
                case [int() | float() as time, str() as text] if is_text:
                    self._set(metric, cell, time, text_of(text))
                case [int() | float() as time, int() | float() as value] if metric.take in ("last", "time"):
                    self._set(metric, cell, time, value)
        for metric, cell, values in _cells(record.get("counts")):
            match values:
                case [int() | float() as count] if metric.take in ("largest", "sum", "count") and count >= 0:
                    self._counts[metric.name][cell] = count
        self.raise_to(before)

    def _epoch(self) -> list[tuple[Labels, float]]:
        names = ("univip_train_data_step", "univip_train_global_batch_images", "univip_data_images")
        data_step, batch, images = (
            float(self._newest.get(name, {}).get(_NO_CELL, (0.0, 0.0))[1]) for name in names
        )
        return [((), data_step * batch / images)] if images > 0 else []


def merged(sources: Iterable[RunSeries]) -> RunSeries:
    """The series of a run from those of its sources: the newest value, the largest count, else the sum."""
    run = RunSeries()
    for source in sources:
        for name, cells in source._newest.items():
            newest = run._newest[name]
            for cell, value in cells.items():
                if cell not in newest or value[0] >= newest[cell][0]:
                    newest[cell] = value
        for name, counts in source._counts.items():
            mine, is_largest = run._counts[name], _METRIC[name].take == "largest"
            for cell, count in counts.items():
                mine[cell] = max(mine.get(cell, 0), count) if is_largest else mine.get(cell, 0) + count
    return run


def _cells(field: Any) -> Iterator[tuple[Metric, Cell, list[Any]]]:
    """The cells of one field of a `totals` record, and what stands in them; nonsense is left out."""
    for name, rows in field.items() if isinstance(field, dict) else ():
        metric = _METRIC.get(name)
        if metric is None or not isinstance(rows, list):
            continue
        width = 0 if metric.type == "info" or metric.take == "state" else len(metric.labels)
        for row in rows[:MAX_CELLS]:
            match row:
                case [list() as labels, str() as source, *values] if len(labels) == width:
                    if all(_is_small(value) for value in values):
                        yield metric, (tuple(map(text_of, labels)), text_of(source)), values


def _is_small(value: Any) -> bool:
    """Whether a value fits a float, if it is a whole number."""
    return not isinstance(value, int) or abs(value) <= MAX_COUNT * _MILLION


def _known_labels(metric: Metric) -> Iterator[Labels]:
    """The series that a counter shows from its start, so that its first event is an increase."""
    if not metric.labels:
        yield ()
    elif len(metric.labels) == 1:
        [known] = metric.labels.values()
        yield from ((value,) for value in known)


def _labels(record: Record, fields: list[str]) -> Labels:
    return tuple([text_of(record.get(name)) for name in fields])


def _numbers(value: Any, path: list[str]) -> Iterator[tuple[str, float]]:
    """The numbers a path leads to, each with what its `*` stands for."""
    if not path:
        if _is_number(value):
            yield "", float(value)
    elif isinstance(value, dict):
        prefix, star, _ = path[0].partition("*")
        if not star:
            yield from _numbers(value.get(prefix), path[1:])
            return
        for key, item in value.items():
            if not key.startswith(prefix):
                continue
            if len(path) == 1:
                if _is_number(item):
                    yield key[len(prefix) :], float(item)
            else:
                yield from ((key[len(prefix) :], number) for _, number in _numbers(item, path[1:]))


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= MAX_COUNT)


def text_of(value: Any) -> str:
    """A label value: of a path only the name, since metrics leave this machine.

    Lone surrogates, which JSON may hold, would make the whole exposition unreadable.
    """
    if isinstance(value, str) and value.isascii() and len(value) <= MAX_LABEL_CHARS and "/" not in value:
        return value
    text = str(value) if isinstance(value, str | int | float) else "unknown"
    return text.rpartition("/")[2][:MAX_LABEL_CHARS].encode("utf-8", "replace").decode("utf-8")
