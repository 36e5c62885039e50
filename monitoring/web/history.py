"""What the journal of one run tells, kept in memory and extended by what was appended since.

Journals are input from outside: a field of the wrong type has no value, and nothing here raises for what a
line holds. A run that goes back draws some data steps twice; the records that a later one supersedes are kept
apart, so that a curve over data steps is the line that led to the present state and what was turned away
from is still there to be seen.
"""

from __future__ import annotations

import math
import re
import uuid
from array import array
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.kinds import KIND, PHASES, TERMS
from monitoring.lines import FOLDER, JournalFile, Record, files
from monitoring.web.buckets import Bools, Column, Floats, Rows

MAX_EVENTS = 2_000  # newest ones; counts go on
MAX_CHECKPOINTS = 500
MAX_MEMBERS = 16  # curves of each group
_ENVELOPE = ("time", "data_step", "place")
_PLAIN = (
    *("loss", "loss_min", "loss_max", "lr", "momentum", "gradient_norm", "gradient_norm_min"),
    *("gradient_norm_max", "images", "steps", "seconds", "checkpoint_time", "target"),
)
_GROUPS: dict[str, tuple[str, ...]] = {"terms": TERMS, "phases": PHASES, "statistics": ()}
_MAX_NODES, _MAX_GPUS = 1_000, 64
_GPU_FIELDS = tuple(name.removesuffix("{}") for name in KIND["gpu"].fields if name.endswith("{}"))
_MEMBER = re.compile(r"\w{1,60}", re.ASCII)
_ROUNDS = 1_000  # more rounds than any attempt has

# Kinds that are told one by one. Other ranks repeat what rank 0 says.
EVENTS = (
    *("skip", "rollback", "restart", "restore", "corruption", "preflight", "stall", "straggler", "collapse"),
    *("gpu_error", "image_failed", "dropped", "round"),
)
_OF_EVERY_RANK = ("stall", "image_failed", "dropped")


class History:
    """One run.

    Attributes:
        events: Newest records of the kinds in EVENTS and of checkpoints that failed, by time.
        counts: Records of each kind so far, as `/metrics` counts them.
        checkpoints: Newest records of durable checkpoints.
        evaluations: Records of evaluations, by time.
        run: Newest value of each field of the `run` records.
        shards: Newest facts of each shard of boxes.
        gpus: Newest reading of the GPUs of each node.
        picture: Newest record of a picture of samples that was drawn; empty if there is none.
        picture_problem: Why a newer one could not be drawn; empty if none failed since.
        unreadable: Names of what could not be read at the last update.
        id: Another one once everything had to be read again.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.unreadable: list[str] = []
        self._files: dict[Path, JournalFile] = {}
        self._forget()

    def _forget(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.num_records = 0
        self.events: deque[Record] = deque(maxlen=MAX_EVENTS)
        self.counts: Counter[str] = Counter()
        self.checkpoints: deque[Record] = deque(maxlen=MAX_CHECKPOINTS)
        self.evaluations: list[Record] = []
        self.run: Record = {}
        self.shards: dict[int, dict[str, Any]] = {}
        self.gpus: dict[int, dict[str, Any]] = {}
        self.picture: Record = {}
        self.picture_problem = ""
        self._picture_time = -math.inf
        self._samples: dict[str, Any] = {}
        self._columns: dict[str, array[float]] = {name: array("d") for name in (*_ENVELOPE, *_PLAIN)}
        self._sources = {name: ("", name) for name in self._columns}  # group and name in a record
        self._members: dict[str, set[str]] = {group: set() for group in _GROUPS}
        self._bad: dict[str, dict[int, str]] = {}
        self._generations: dict[str, int] = {"step": 0, "time": 0}
        self._rows: dict[str, Rows] = {}
        self._ready: dict[str, Floats] | None = None

    @property
    def damaged(self) -> int:
        """Lines that are no records."""
        return sum(file.damaged for file in self._files.values())

    @property
    def samples(self) -> dict[str, float]:
        """What became of the samples so far."""
        return {
            str(name): value for name, item in self._samples.items() if (value := finite(item)) is not None
        }

    def update(self) -> None:
        """Read what was appended; everything again where a file is not the one it was."""
        self.unreadable = []
        try:
            sizes = {path: path.stat().st_size for path in files(self.run_dir)}
        except OSError:
            self.unreadable.append(FOLDER)
            return
        if any(sizes.get(path, file.offset) < file.offset for path, file in self._files.items()):
            self._files.clear()
            self._forget()
        before = self.num_records
        for path, size in sizes.items():
            file = self._files.setdefault(path, JournalFile(path))
            if size > file.offset:
                self._read(file)
        if self.num_records != before:
            self._ready = None
            # Files are read one after the other.
            self.events = deque(sorted(self.events, key=_time), maxlen=MAX_EVENTS)
            self.evaluations.sort(key=_time)

    def _read(self, file: JournalFile) -> None:
        try:
            for record in file.records():
                self.num_records += 1
                self._add(record)
        except OSError:
            self.unreadable.append(file.path.name)

    def column(self, key: str) -> Column:
        """A curve by its key; empty where the run has none."""
        table = self._table()
        if key.startswith("phases."):
            amounts = _growth(table, key)
            return Column(amounts, amounts, amounts, {}, is_amount=True)
        if key == "images_per_s":
            seconds = np.diff(table["time"], prepend=np.nan)
            is_within = (np.diff(table["place"], prepend=np.nan) == 0) & (seconds > 0)
            rate = np.divide(
                np.diff(table["images"], prepend=np.nan),
                seconds,
                out=np.full(len(seconds), np.nan),
                where=is_within,
            )
            rate[rate < 0] = np.nan
            return Column(rate, rate, rate, {})
        if key == "checkpoint_age_s":
            age = np.where(table["checkpoint_time"] > 0, table["time"] - table["checkpoint_time"], np.nan)
            return Column(age, age, age, {})
        values = table.get(key, np.full(len(table["time"]), np.nan))
        lows, highs = table.get(f"{key}_min", values), table.get(f"{key}_max", values)
        bad: dict[int, str] = {}
        for name in (f"{key}_max", f"{key}_min", key):
            bad |= self._bad.get(name, {})
        return Column(values, np.fmin(lows, values), np.fmax(highs, values), bad)

    def keys(self) -> list[str]:
        """Every curve this run has."""
        hidden = {*_ENVELOPE, "loss_min", "loss_max", "gradient_norm_min", "gradient_norm_max", "target"}
        hidden |= {"images", "steps", "seconds", "checkpoint_time"}
        found = [name for name, values in self._columns.items() if name not in hidden and len(values)]
        return [*found, "images_per_s", "checkpoint_age_s"] if len(self) else []

    def __len__(self) -> int:
        return len(self._columns["time"])

    def x(self, axis: str) -> Floats:
        """Abscissa of every record: data step, or Unix time in seconds."""
        return self._table()["data_step" if axis == "step" else "time"]

    def rows(self, axis: str) -> tuple[Rows, int]:
        """Records of a curve in drawing order, and a number that changes unless some were only appended."""
        if axis == "step":
            rows = np.flatnonzero(~self.is_superseded())
        else:
            rows = np.argsort(self._table()["time"], kind="stable")
        before = self._rows.get(axis, rows[:0])
        if not np.array_equal(rows[: len(before)], before):
            self._generations[axis] += 1
        self._rows[axis] = rows
        return rows, self._generations[axis]

    def is_superseded(self) -> Bools:
        """[N] Whether the run went back behind a record later; those are not part of its present state."""
        steps = self._table()["data_step"]
        if not len(steps):
            return np.empty(0, dtype=np.bool_)
        least_after = np.minimum.accumulate(steps[::-1])[::-1]
        return np.append(least_after[1:] <= steps[:-1], False)

    def seconds(self) -> Floats:
        """[N] Wall time in the step loop since the record before."""
        return _growth(self._table(), "seconds")

    def _table(self) -> dict[str, Floats]:
        """Every column in order of attempt, round and writing."""
        if self._ready is None:
            table = {name: np.array(values, dtype=np.float64) for name, values in self._columns.items()}
            place = table["place"]
            if np.any(np.diff(place) < 0):
                self._reorder(np.argsort(place, kind="stable"))
                return self._table()
            self._ready = table
        return self._ready

    def _reorder(self, order: Rows) -> None:
        """An older file grew after a newer one was read."""
        new_row = {int(old): new for new, old in enumerate(order)}
        for name, values in self._columns.items():
            self._columns[name] = array("d", np.array(values, dtype=np.float64)[order].tolist())
        for name, bad in self._bad.items():
            self._bad[name] = {new_row[row]: what for row, what in bad.items()}
        self._rows.clear()
        for axis in self._generations:
            self._generations[axis] += 1

    def _add(self, record: Record) -> None:
        kind = record["kind"]
        if kind not in _OF_EVERY_RANK and record.get("rank") not in (0, None):
            return
        if kind == "step":
            self._add_step(record)
            return
        if kind == "checkpoint":
            is_failed = record.get("outcome") != "success"
            kind = "checkpoint_failed" if is_failed else kind
            (self.events if is_failed else self.checkpoints).append({**record, "kind": kind})
        elif kind in EVENTS:
            self.events.append(record)
        elif kind == "evaluate":
            self.evaluations.append(record)
        elif kind == "run":
            if record["time"] >= self.run.get("time", -math.inf):
                self.run.update({name: value for name, value in record.items() if value is not None})
        elif kind in ("shard", "proposals"):
            self._add_shard(record)
        elif kind == "gpu":
            self._add_gpus(record)
        elif kind == "samples" and record["time"] >= self._picture_time:
            self._picture_time = record["time"]
            is_drawn = record.get("outcome") == "success"
            self.picture = record if is_drawn else self.picture
            self.picture_problem = "" if is_drawn else str(record.get("what"))
        self.counts[kind] += 1

    def _add_step(self, record: Record) -> None:
        """One row; written for speed, a week of training has twenty thousand of them."""
        if finite(record.get("data_step")) is None:
            return
        self.counts["step"] += 1
        row = len(self)
        record["place"] = (number(record.get("attempt")) or 0.0) * _ROUNDS + (
            number(record.get("round")) or 0.0
        )
        members = {"": record}
        for group, known in _GROUPS.items():
            members[group] = found = record[group] if isinstance(record.get(group), dict) else {}
            if not self._members[group].issuperset(found):
                self._add_columns(group, known or tuple(found), row)
        for key, (group, name) in self._sources.items():
            value = members[group].get(name)
            if type(value) is not float or not -math.inf < value < math.inf:  # NaN too
                value = self._unusual(key, row, value)
            self._columns[key].append(value)
        if isinstance(counts := record.get("counts"), dict):
            self._samples = counts

    def _add_columns(self, group: str, names: tuple[str, ...], row: int) -> None:
        """Curves that records bring with them, the first few."""
        for name in names:
            key = f"{group}.{name}"
            if not _MEMBER.fullmatch(name):
                continue
            if name not in self._members[group] and len(self._members[group]) < MAX_MEMBERS:
                self._members[group].add(name)
                self._columns[key] = array("d", [math.nan]) * row
                self._sources[key] = (group, name)

    def _unusual(self, key: str, row: int, value: Any) -> float:
        """What stands in a column for a value that is no finite float."""
        as_number = number(value)
        if as_number is None:
            return math.nan
        if not math.isfinite(as_number):
            what = "NaN" if math.isnan(as_number) else "Infinity" if as_number > 0 else "-Infinity"
            self._bad.setdefault(key, {})[row] = what
            return math.nan
        return as_number

    def _add_shard(self, record: Record) -> None:
        index = record.get("shard")
        if type(index) is not int:
            return
        shard = self.shards.setdefault(index, {"shard": index, "state": "running"})
        if record["kind"] == "shard":
            shard["state"] = str(record.get("state"))
        else:
            shard |= {name: finite(record.get(name)) for name in ("images_done", "images", "boxes")}
            if isinstance(failed := record.get("failed"), dict):
                shard["failed"] = sum(finite(count) or 0 for count in failed.values())
        shard["time"] = record["time"]

    def _add_gpus(self, record: Record) -> None:
        node = record.get("node")
        if type(node) is not int or (node not in self.gpus and len(self.gpus) >= _MAX_NODES):
            return
        known = self.gpus.get(node)
        if known is None or record["time"] >= known["time"]:
            values = {name: record[name] for name in _GPU_FIELDS if isinstance(record.get(name), dict)}
            names = sorted({str(gpu) for numbers in values.values() for gpu in numbers})[:_MAX_GPUS]
            rows = [
                {"gpu": gpu, **{name: finite(numbers.get(gpu)) for name, numbers in values.items()}}
                for gpu in names
            ]
            self.gpus[node] = {
                "node": node, "host": str(record.get("host")), "time": record["time"], "gpus": rows
            }  # fmt: skip


def number(value: Any) -> float | None:
    """A number of a journal field, None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: Any) -> float | None:
    """A finite number of a file, None if it is none."""
    known = number(value)
    return known if known is not None and math.isfinite(known) else None


def _time(record: Record) -> float:
    return float(record["time"])


def _growth(table: dict[str, Floats], key: str) -> Floats:
    """Growth of a counter since the record before; never negative, and nothing where it is not recorded."""
    values = table.get(key, np.full(len(table["time"]), np.nan))
    return np.maximum(np.diff(values, prepend=0.0), 0.0) if len(values) else values
