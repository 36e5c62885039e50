"""What the journal of a run tells, line by line: its progress now and then, and everything that happened.

A journal of weeks has hundreds of megabytes. So of what is there already the ends of the files are read,
from the newest attempt back until there are lines enough; after that, what grows.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

from launcher.events import event_in_words, is_problem, problem_in_words
from launcher.render import progress_line
from launcher.shards import finished_shards, journals
from launcher.summary import progress_of
from monitoring.lines import JournalFile, Record

PROGRESS_EVERY_S = 30.0  # at least, between two lines
_END_BYTES = 1 << 22  # of a file: some hours of training
_ENDS_BYTES = 1 << 24  # of all files of a run
_NAME = re.compile(r"(\d+)\.\d+-([a-z]+)(\d*)\.jsonl")

Line = tuple[float, str]  # when it happened (Unix, s), and what


class JournalLines:
    """The journal of one run directory as lines: first the last ones, then those that are new."""

    def __init__(self, run_dir: Path, rank: int | None = None, attempt: int | None = None) -> None:
        """Read nothing yet.

        Args:
            run_dir: The run directory.
            rank: Only what this rank recorded; left out, rank 0, the agents and other stages, and the
                problems of all ranks.
            attempt: Only what was recorded in this attempt.
        """
        self._run_dir = run_dir
        self._rank = rank
        self._attempt = attempt
        self._open: dict[Path, _OneFile] = {}

    def last(self, count: int) -> list[Line]:
        """The last lines that there are, the newest last; call it first, and once."""
        self._open = {path: _OneFile(path, self._rank) for path in self._paths()}
        found: list[Line] = []
        bytes_left = _ENDS_BYTES
        for _, paths in itertools.groupby(reversed(self._open), key=_attempt_of):
            is_enough = len(found) >= count
            for path in paths:
                bytes_left -= self._open[path].skip(0 if is_enough else min(_END_BYTES, max(0, bytes_left)))
                found += self._open[path].lines()
        return sorted(found, key=_time)[-count:] if count else []

    def new(self) -> list[Line]:
        """What was recorded since the last call, in order of time."""
        before = self._open
        self._open = {path: before.get(path) or _OneFile(path, self._rank) for path in self._paths()}
        # The file of a shard that has just been finished is not listed any more, but has a last line.
        gone = [each for path, each in before.items() if path not in self._open]
        return sorted((line for each in (*gone, *self._open.values()) for line in each.lines()), key=_time)

    def _paths(self) -> list[Path]:
        """Files of the attempt and the rank that are asked for, in order of attempts."""
        found = []
        for path in journals(self._run_dir, finished_shards(self._run_dir)):
            match = _NAME.fullmatch(path.name)
            if match is None or (self._attempt is not None and int(match[1]) != self._attempt):
                continue
            if self._rank is None or (match[2] == "rank" and int(match[3]) == self._rank):
                found.append(path)
        return found


class _OneFile:
    """One journal file as lines, each time from where the last reading stopped."""

    def __init__(self, path: Path, rank: int | None) -> None:
        match = _NAME.fullmatch(path.name)
        is_other_rank = match is not None and match[2] == "rank" and int(match[3]) > 0
        self._file = JournalFile(path)
        self._problems_only = is_other_rank and rank is None
        self._steps: list[Record] = []  # since the last line that told of progress, and that one
        self._next_progress_s = -math.inf

    def skip(self, most_bytes: int) -> int:
        """Go to so many bytes before the end; returns how many there are to read from there."""
        size = self._file.path.stat().st_size
        self._file.offset = max(0, size - most_bytes)  # within a line, which is then left out
        return size - self._file.offset

    def lines(self) -> list[Line]:
        """What is new in it."""
        if self._file.path.stat().st_size <= self._file.offset:
            return []
        told = ((float(record["time"]), self._line(record)) for record in self._file.records())
        return [(at, line) for at, line in told if line]

    def _line(self, record: Record) -> str:
        if is_problem(record):
            return f"! {problem_in_words(record)}"
        if self._problems_only and record["kind"] != "stall":
            return ""
        if record["kind"] == "step":
            self._steps.append(record)
            if not self._is_due(record, "data_step", "target"):
                return ""
            line = progress_line(progress_of(self._file.path.parents[1].name, self._steps))
            self._steps = [record]
            return line
        if record["kind"] == "proposals" and not self._is_due(record, "images_done", "images"):
            return ""
        return event_in_words(record)

    def _is_due(self, record: Record, done: str, target: str) -> bool:
        """Whether to tell of this progress: of the first, of one in a while, and of the last."""
        is_last = (record.get(done) or 0) >= (record.get(target) or math.inf)
        if record["time"] < self._next_progress_s and not is_last:
            return False
        self._next_progress_s = record["time"] + PROGRESS_EVERY_S
        return True


def _attempt_of(path: Path) -> int:
    return int(path.name.partition(".")[0])


def _time(line: Line) -> float:
    return line[0]
