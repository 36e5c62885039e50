"""The lines of a journal and the files that hold them; `monitoring/journal.py` says what they mean.

Whatever is in a file, reading it goes on: a line that is no record is counted and left out, one without an
end is not taken into memory, and a torn last line is waited for.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring.kinds import TOTALS

VERSION = 1  # raised when a field changes its meaning; added fields do not count
FOLDER = "journal"
MAX_LINE_BYTES = 32_768
BLOCK_BYTES = 1 << 20
BACK_BYTES = 2048  # read at a time while looking back for a `totals` record
MAX_BACK_BYTES = 32 * BACK_BYTES  # a file in order has one within; else all of it is read

Record = dict[str, Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NAME = re.compile(r"(\d{4,9})\.(\d{2,9})-([a-z]+[0-9]*)\.jsonl")


class JournalFile:
    """One file read in order, each time from where the last reading stopped.

    Attributes:
        damaged: Lines so far that are not records.
        bytes_read: So far.
        offset: Where the next line begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self.bytes_read = 0
        self.offset = 0
        self._is_in_endless_line = False

    def next_block(self) -> list[Record] | None:
        """The records of the next MiB or so, None if there is no complete line left.

        The file is closed in between: a run may have more files than a process may hold open.

        Raises:
            OSError: If the file cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(BLOCK_BYTES)
        self.bytes_read += len(data)
        return self._take(data)

    def records(self) -> Iterator[Record]:
        """All records up to the end of the file as it is now.

        Raises:
            OSError: If the file cannot be read.
        """
        while (block := self.next_block()) is not None:
            yield from block

    def seek_totals(self) -> tuple[bool, list[Record]]:
        """Go to the last `totals` record near the end, without any to the beginning.

        Returns:
            Whether what follows tells of everything before it, earlier files included; and the records of the
            part that had to be read to find out.

        Raises:
            OSError: If the file cannot be read.
        """
        with self.path.open("rb", buffering=0) as file:  # a buffer would read more than it is asked for
            start, data = file.seek(0, os.SEEK_END), b""
            while start and len(data) < MAX_BACK_BYTES:
                size = min(start, BACK_BYTES)
                start -= size
                file.seek(start)
                data = file.read(size) + data
                self.bytes_read += size
                position = _last_totals(data, is_whole=not start)
                if position is not None:
                    self.offset = start + position
                    return True, self._take(data[position:]) or []
            if not start:
                return False, self._take(data) or []
            file.seek(0)
            first = decode(file.read(MAX_LINE_BYTES).partition(b"\n")[0])
        return first is not None and first["kind"] == TOTALS, []

    def _take(self, data: bytes) -> list[Record] | None:
        """The records of the whole lines in the bytes at `offset`."""
        end = data.rfind(b"\n") + 1
        if not end:
            if len(data) < BLOCK_BYTES:
                return None
            # No record is so long. What is left of this line is no record either.
            self._is_in_endless_line = True
            self.offset += len(data)
            return []
        self.offset += end
        lines = data[: end - 1].split(b"\n")
        if self._is_in_endless_line:
            lines[0], self._is_in_endless_line = b"", False
        records = [record for line in lines if (record := decode(line)) is not None]
        self.damaged += len(lines) - len(records)
        return records


def files(run_dir: Path) -> list[Path]:
    """The files of a run, in order of attempt and round; none if it has no journal yet.

    Raises:
        OSError: If the folder cannot be listed.
    """
    try:
        return sorted(path for path in (run_dir / FOLDER).iterdir() if path.suffix == ".jsonl")
    except FileNotFoundError:
        return []


def files_by_source(run_dir: Path) -> dict[str, list[Path]]:
    """The files of each source, such as `rank0000`, in order of attempt and round.

    Raises:
        OSError: If the folder cannot be listed.
    """
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in files(run_dir):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(match[3], []).append((int(match[1]), int(match[2]), path))
    return {source: [path for _, _, path in sorted(places)] for source, places in found.items()}


def encode(record: Record) -> bytes:
    """The line of a record; may raise whatever a foreign `repr` raises."""
    return json.dumps(_plain(record)).encode() + b"\n"


def _last_totals(data: bytes, *, is_whole: bool) -> int | None:
    """Where the last `totals` line begins; unless the data is the whole file its first line may be torn."""
    end = len(data)
    while (found := data.rfind(b'"kind": "%s"' % TOTALS.encode(), 0, end)) >= 0:
        begin, stop = data.rfind(b"\n", 0, found) + 1, data.find(b"\n", found)
        record = decode(data[begin:stop]) if stop >= 0 and (begin or is_whole) else None
        if record is not None and record["kind"] == TOTALS:
            return begin
        end = found
    return None


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


def decode(line: bytes) -> Record | None:
    """The record of a line, None if it is none of ours."""
    if len(line) > MAX_LINE_BYTES:
        return None
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
