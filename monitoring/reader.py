"""Follows the journal of a run as it grows, reading as little of it as possible.

A run has many files, but only the newest of each source still grows, and its last `totals` record stands for
everything before it. So a reader that starts anew reads the ends of a few files, and one that goes on reads
only what was appended. By polling: network file systems send no notifications.
"""

from __future__ import annotations

import logging
from pathlib import Path

from monitoring.lines import JournalFile, Record, files_by_source
from monitoring.series import RunSeries, merged

_logger = logging.getLogger(__name__)


class Source:
    """The files of one process and of those that took its place.

    Attributes:
        series: What they amount to.
        unreadable: Files that could not be read in the last update.
        damaged: Lines met so far that are not records.
        bytes_read: So far.
    """

    def __init__(self) -> None:
        self.series = RunSeries()
        self.unreadable: list[Path] = []
        self.damaged = 0
        self.bytes_read = 0
        self._file: JournalFile | None = None  # the one that grows
        self._stat = (0, 0, 0)  # its device, inode and size when last read

    def update(self, paths: list[Path]) -> bool:
        """Read what was appended; return whether there was anything to read.

        Args:
            paths: All files of this source, oldest first; at least one.
        """
        stat = _stat(paths[-1])
        is_known = self._file is not None and self._file.path == paths[-1] and not self.unreadable
        if is_known and stat == self._stat:
            return False
        if is_known and self._file and stat[:2] == self._stat[:2] and stat[2] >= self._file.offset:
            self._read(self._file)
        else:
            self._begin(paths)
        self._stat = stat
        return True

    def _begin(self, paths: list[Path]) -> None:
        """Read from the last `totals` record on, without any from the first line; no counter goes back."""
        before, self.series = self.series, RunSeries()
        damaged_before, self.damaged = self.damaged, 0
        self.unreadable, self._file = [], None
        found: list[tuple[JournalFile, list[Record]]] = []
        for path in reversed(paths):
            file = JournalFile(path)
            try:
                is_enough, records = file.seek_totals()
            except OSError as error:
                self._pass_over(path, error)
                continue
            found.append((file, records))
            if is_enough:
                break
        for file, records in reversed(found):
            for record in records:
                self.series.add(record)
            self._read(file)
        self.series.raise_to(before)
        self.damaged = max(self.damaged, damaged_before)

    def _read(self, file: JournalFile) -> None:
        """Read to the end of a file."""
        self._file = file
        try:
            for record in file.records():
                self.series.add(record)
        except OSError as error:
            self._pass_over(file.path, error)
        self.damaged += file.damaged
        self.bytes_read += file.bytes_read
        file.damaged = file.bytes_read = 0

    def _pass_over(self, path: Path, error: OSError) -> None:
        _logger.debug("passing over %s: %s", path, error)
        self.unreadable.append(path)


class RunReader:
    """All sources of a run.

    Attributes:
        series: What the run amounts to.
        is_readable: Whether everything could be read in the last update.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.series = RunSeries()
        self.is_readable = True
        self._sources: dict[str, Source] = {}

    @property
    def damaged(self) -> int:
        """Lines met so far that are not records."""
        return sum(source.damaged for source in self._sources.values())

    @property
    def bytes_read(self) -> int:
        """So far."""
        return sum(source.bytes_read for source in self._sources.values())

    def update(self) -> bool:
        """Read what was appended; return whether there was anything to read. What is gone stays counted."""
        try:
            paths = files_by_source(self.run_dir)
        except OSError as error:
            _logger.debug("passing over %s: %s", self.run_dir, error)
            self.is_readable = False
            return False
        changes = [self._sources.setdefault(name, Source()).update(paths[name]) for name in paths]
        self.is_readable = not any(source.unreadable for source in self._sources.values())
        if any(changes):
            self.series = merged(source.series for source in self._sources.values())
        return any(changes)


def read_source(paths: list[Path]) -> RunSeries:
    """What the files of one source amount to, oldest first; those that cannot be read are passed over."""
    source = Source()
    if paths:
        source.update(paths)
    return source.series


def _stat(path: Path) -> tuple[int, int, int]:
    """Device, inode and size; zeros if it is gone or may not be looked at, which reading will tell."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size
