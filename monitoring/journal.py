"""The journal of a run: what happened, one JSON object per line, in a file of its own for each process.

One writer per file, many readers. Training appends through a queue and a thread and knows nothing else of
monitoring: a full disk, a slow file system or a bad value costs lines, never a step. Readers take files as
they grow, skip what is damaged and ignore a torn last line, so a run may be read while it writes and after
it was killed.

    journal/0002.01-rank0003.jsonl     attempt 2, round 1, rank 3
    journal/0004.00-shard00007.jsonl   attempt 4, `source="shard00007"`: no rank, its records have rank null

A record is `{v, kind, seq, time, attempt, round, rank, step, data_step}` and the fields of its kind
(`monitoring/kinds.py`). `seq` counts the records of one file, lost ones included; `time` is Unix time in
seconds. Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity", because JSON has no others. A
line holds at most `MAX_LINE_BYTES`, so the end of a file always tells the last thing that happened.

Every 8 KiB a `totals` record says what the file amounts to so far, and the first line of a file what the
earlier files of the same source did. So the end of the newest file of each source is enough to know every
counter of the run. Readers of records are spared it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from monitoring.kinds import TOTALS
from monitoring.lines import FOLDER as FOLDER
from monitoring.lines import MAX_LINE_BYTES, VERSION, JournalFile, decode, encode, files, files_by_source
from monitoring.lines import Record as Record
from monitoring.reader import read_source
from monitoring.series import RunSeries

MAX_WAITING = 4096  # records that wait for the disk before new ones are dropped
TAIL_BYTES = 65_536  # at least one whole line
TOTALS_BYTES = 8192  # of lines between two `totals` records

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
        self._series: RunSeries | None = None  # what this source amounts to; read before the first line
        self._bytes_untold = 0  # since the last `totals` record
        self._thread = threading.Thread(target=self._write_until_closed, name="journal", daemon=True)
        self._thread.start()

    def record(self, kind: str, **fields: object) -> None:
        """Queue one record; returns at once and never raises.

        Args:
            kind: One of `monitoring.kinds.KINDS`.
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
            line = encode({**stamp, **self._place, **fields, **stamp})
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
            unwritten = self._append_with_totals(lines)
            with self._wake:
                # The notice is the last line: if anything is unwritten so is the notice, and it stays owed.
                self._lost += unwritten - bool(lost) if unwritten else -lost
        self._close_file()

    def _append_with_totals(self, lines: list[bytes]) -> int:
        """`_append`, with `totals` records where they are due; keeps what the file amounts to."""
        if lines and self._series is None:
            self._series = self._earlier()
            self._bytes_untold = TOTALS_BYTES if any(self._series.totals().values()) else 0
        while lines and self._series is not None:
            if self._bytes_untold >= TOTALS_BYTES:
                with self._wake:
                    totals = self._encode(TOTALS, self._series.totals())
                    self._seq += 1
                # One too long is left out: readers then go back to the one before it.
                if totals is None or not self._append([totals]):
                    self._bytes_untold = 0
            ends = itertools.accumulate(map(len, lines), initial=self._bytes_untold)
            num_lines = max(1, sum(end < TOTALS_BYTES for end in ends))
            unwritten = self._append(lines[:num_lines])
            for line in lines[: num_lines - unwritten]:
                self._bytes_untold += len(line)
                if record := decode(line):
                    self._series.add(record)
            lines = lines[num_lines:]
            if unwritten:
                return unwritten + len(lines)
        return 0

    def _earlier(self) -> RunSeries:
        """What this source amounted to before this process."""
        try:
            paths = files_by_source(self.path.parents[1])
        except OSError as error:
            _logger.warning("counters begin anew: %s", error)
            return RunSeries()
        return read_source(paths.get(self.path.stem.partition("-")[2], []))

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


def read(run_dir: Path) -> Iterator[Record]:
    """Every record of a run, its files merged by time.

    Within a file the order is that of writing, even where a clock was set back. Non-finite numbers are
    floats again. Damaged lines are left out, with one warning in the log. A run without a journal has no
    records.

    Raises:
        OSError: If a file cannot be read.
    """
    opened = [JournalFile(path) for path in files(Path(run_dir))]
    for record in heapq.merge(*(file.records() for file in opened), key=lambda record: record["time"]):
        if record["kind"] != TOTALS:
            yield record
    damaged = sum(file.damaged for file in opened)
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
    return [record for line in whole if (record := decode(line)) is not None and record["kind"] != TOTALS]


def newest_record(run_dir: Path, source: str, kind: str) -> Record | None:
    """The last record of a kind of a source, None if there is none; files are read from their ends."""
    try:
        paths = files_by_source(run_dir).get(source, [])
    except OSError as error:
        _logger.warning("no earlier records: %s", error)
        return None
    for path in reversed(paths):
        try:
            for records in (tail_records(path), JournalFile(path).records()):
                found = [record for record in records if record["kind"] == kind]
                if found:
                    return found[-1]
        except OSError as error:
            _logger.warning("passing over %s: %s", path, error)
    return None


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
