"""The journal of a run: what happened, one JSON object per line, in a file of its own for each process.

One writer per file, many readers. Training appends through a queue and a thread and knows nothing else of
monitoring: a full disk, a slow file system or a bad value costs lines, never a step. Readers take files as
they grow, skip what is damaged and ignore a torn last line, so a run may be read while it writes and after
it was killed.

    journal/0002.01-rank0003.jsonl     attempt 2, round 1, rank 3
    journal/0004.00-shard00007.jsonl   attempt 4, `source="shard00007"`: no rank, its records have rank null

A record is `{v, kind, seq, time, attempt, round, rank, step, data_step}` and the fields of its kind
(`monitoring/catalog.py`). `seq` counts the records of one file, lost ones included; `time` is Unix time in
seconds. Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity", because JSON has no others. A
line holds at most `MAX_LINE_BYTES`, so the end of a file always tells the last thing that happened.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

VERSION = 1  # raised when a field changes its meaning; added fields do not count
FOLDER = "journal"
MAX_LINE_BYTES = 32_768
MAX_WAITING = 4096  # records that wait for the disk before new ones are dropped
TAIL_BYTES = 65_536  # at least one whole line
BLOCK_BYTES = 1 << 20

Record = dict[str, Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_logger = logging.getLogger(__name__)


class Journal:
    """Appends the records of one process; an `Observer` of the engine.

    Lines that cannot be queued, encoded or written are counted, and a `dropped` record says how many as
    soon as one can be written.
    """

    def __init__(
        self, run_dir: Path, attempt: int = 1, round: int = 0, rank: int = 0, *, source: str = ""
    ) -> None:
        """Start the writing thread; the file appears with the first record.

        Args:
            run_dir: The run directory; must exist for anything to be kept.
            attempt: Number of the attempt.
            round: Number of the round within the attempt.
            rank: Rank within the round.
            source: Names a process that is no rank, such as `shard00007`: lower-case letters, then digits.

        Raises:
            ValueError: If `source` is no such name.
        """
        if source and not re.fullmatch(r"[a-z]+[0-9]*", source):
            raise ValueError(f"`source` must be lower-case letters, then digits, but is {source!r}.")
        name = f"{attempt:04d}.{round:02d}-{source or f'rank{rank:04d}'}.jsonl"
        self.path = Path(run_dir) / FOLDER / name
        self._place: Record = {
            "attempt": attempt,
            "round": round,
            "rank": None if source else rank,
            "step": None,
            "data_step": None,
        }
        # Reentrant: a signal handler may record while the code it interrupted holds the lock.
        self._wake = threading.Condition(threading.RLock())
        self._lines: list[bytes] = []
        self._seq = 0
        self._lost = 0  # records no `dropped` record has told of yet
        self._closing = False
        self._descriptor: int | None = None
        self._is_failing = False
        self._thread = threading.Thread(target=self._write_until_closed, name="journal", daemon=True)
        self._thread.start()

    def record(self, kind: str, **fields: object) -> None:
        """Queue one record; returns at once and never raises.

        Args:
            kind: One of `monitoring.catalog.KINDS`.
            **fields: JSON values, NumPy values, or anything with a `repr`; encoded before this returns, so
                the caller may change them. `step`, `data_step`, `attempt`, `round` and `rank` take their
                place in the envelope.
        """
        with self._wake:
            has_room = len(self._lines) < MAX_WAITING and not self._closing
            line = self._encode(kind, fields) if has_room else None
            self._seq += 1
            if line is None:
                self._lost += 1
            else:
                self._lines.append(line)
                self._wake.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for at most `timeout_s`; later records are dropped."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, kind: str, fields: dict[str, object]) -> bytes | None:
        """The line of one record, or None if it cannot be a line."""
        stamp: Record = {"v": VERSION, "kind": kind, "seq": self._seq, "time": time.time()}
        try:
            line = json.dumps(_plain({**stamp, **self._place, **fields, **stamp})).encode() + b"\n"
        except Exception:  # noqa: BLE001 - a foreign `repr` may raise anything; the caller counts the loss
            return None
        return line if len(line) <= MAX_LINE_BYTES else None

    def _write_until_closed(self) -> None:
        closing = False
        while not closing:
            with self._wake:
                self._wake.wait_for(lambda: self._lines or self._closing)
                lines, self._lines = self._lines, []
                lost, closing = self._lost, self._closing
                if lost and (notice := self._encode("dropped", {"records": lost})):
                    lines.append(notice)
                    self._seq += 1
            unwritten = self._append(lines)
            with self._wake:
                # The notice is the last line: if anything is unwritten so is the notice, and it stays owed.
                self._lost += unwritten - bool(lost) if unwritten else -lost
        self._close_file()

    def _append(self, lines: list[bytes]) -> int:
        """Append lines, in one write if possible; return how many are not in the file whole."""
        data = b"".join(lines)
        try:
            if data and self._descriptor is None:
                self._descriptor = _open_for_appending(self.path)
            while data and self._descriptor is not None:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            if not self._is_failing:
                _logger.warning("records are dropped until %s can be written: %s", self.path, error)
            self._close_file()  # opened anew next time, so that a line cut off here is ended first
        self._is_failing = bool(data)
        return data.count(b"\n")

    def _close_file(self) -> None:
        if self._descriptor is not None:
            try:
                os.close(self._descriptor)
            except (
                OSError
            ) as error:  # a network file system tells of a failed write; it is closed all the same
                _logger.warning("closing %s: %s", self.path, error)
            self._descriptor = None


class JournalFile:
    """One file read in order, each time from where the last reading stopped.

    Attributes:
        damaged: Lines so far that are not records.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._offset = 0

    def next_block(self) -> list[Record] | None:
        """The records of the next MiB or so, None if there is no complete line left.

        The file is closed in between: a run may have more files than a process may hold open.

        Raises:
            OSError: If the file cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.readlines(BLOCK_BYTES)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if not lines:
            return None
        self._offset += sum(map(len, lines))
        records = [record for line in lines if (record := _decode(line)) is not None]
        self.damaged += len(lines) - len(records)
        return records

    def records(self) -> Iterator[Record]:
        """All records up to the end of the file as it is now.

        Raises:
            OSError: If the file cannot be read.
        """
        while (block := self.next_block()) is not None:
            yield from block


class JournalReader:
    """Follows all files of a run.

    Attributes:
        unreadable: Names of what could not be read in the last poll.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.unreadable: list[str] = []
        self._files: dict[Path, JournalFile] = {}

    @property
    def damaged(self) -> int:
        """Lines so far that are not records."""
        return sum(file.damaged for file in self._files.values())

    def poll(self) -> Iterator[Record]:
        """What was written since the last poll, file by file; `unreadable` names what could not be read."""
        self.unreadable = []
        try:
            paths = _files(self.run_dir)
        except OSError as error:
            self._pass_over(FOLDER, error)
            return
        for path in paths:
            try:
                yield from self._files.setdefault(path, JournalFile(path)).records()
            except OSError as error:
                self._pass_over(path.name, error)

    def _pass_over(self, name: str, error: OSError) -> None:
        _logger.debug("passing over %s of run %s: %s", name, self.run_dir.name, error)
        self.unreadable.append(name)


def read(run_dir: Path) -> Iterator[Record]:
    """Every record of a run, its files merged by time.

    Within a file the order is that of writing, even where a clock was set back. Non-finite numbers are
    floats again. Damaged lines are left out, with one warning in the log. A run without a journal has no
    records.

    Raises:
        OSError: If a file cannot be read.
    """
    files = [JournalFile(path) for path in _files(Path(run_dir))]
    yield from heapq.merge(*(file.records() for file in files), key=lambda record: record["time"])
    damaged = sum(file.damaged for file in files)
    if damaged:
        _logger.warning("left out %d damaged lines of the journal of %s", damaged, run_dir)


def tail_records(path: Path) -> list[Record]:
    """The whole records in the last 64 KiB of a file, in order; reads nothing else of it.

    Raises:
        OSError: If the file cannot be read.
    """
    with Path(path).open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        lines = file.read(TAIL_BYTES).split(b"\n")
    # The last piece is torn or empty; the first one is the end of a line unless the file begins with it.
    whole = lines[1 if start else 0 : -1]
    return [record for line in whole if (record := _decode(line)) is not None]


def _files(run_dir: Path) -> list[Path]:
    """The files of a run, in order of attempt and round; none if it has no journal yet."""
    try:
        return sorted(path for path in (run_dir / FOLDER).iterdir() if path.suffix == ".jsonl")
    except FileNotFoundError:
        return []


def _open_for_appending(path: Path) -> int:
    """Open a journal file so that the next byte begins a line."""
    path.parent.mkdir(exist_ok=True)  # who may read it is decided by the mode of the run directory
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _plain(value: object) -> object:
    """The JSON form of a value."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _name_of(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _plain(value.tolist())
    return repr(value)


def _name_of(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _decode(line: bytes) -> Record | None:
    """The record of a line, None if it is none of ours."""
    try:
        record = json.loads(line)
        if b'"NaN"' in line or b'Infinity"' in line:
            record = _with_numbers(record)
        valid = record["v"] == VERSION and isinstance(record["kind"], str) and math.isfinite(record["time"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return dict(record) if valid else None


def _with_numbers(value: Any) -> Any:
    """The value with non-finite numbers in place of their names."""
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return value
