"""The sample log: for every data step that was applied on the way to the present state, which samples it saw.

It lies beside the checkpoints and is written just before each of them, so a checkpoint never holds a step
that is not here. A state that is loaded makes void what was logged beyond it. `univip audit` compares the log
with the plan.

    samples.bin     records of 24 bytes: data step (int64), mark of the samples, mark of their views (uint64);
                    a negative number -1 - d instead: the state of data step d was loaded
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

from univip.atomic import sync

FILE_NAME = "samples.bin"
_RECORD = struct.Struct("<qQQ")


class Marks(NamedTuple):
    """Of one data step, over all ranks (`univip/data/marks.py`)."""

    samples: int  # planned: (epoch, image id) of every place, whether or not the photograph could be read
    views: int  # shown: rectangles of every sample, substitutes included


class SampleLog:
    """Written by rank 0 of the owner of the run.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending = b""

    def start(self, data_step: int) -> None:
        """The state of this data step was loaded: what follows it is made anew."""
        if self.path.exists():  # a record cut off by a crash would shift all that follow
            os.truncate(self.path, self.path.stat().st_size // _RECORD.size * _RECORD.size)
        self._pending = _RECORD.pack(-1 - data_step, 0, 0)

    def add(self, data_step: int, marks: Marks) -> None:
        """A data step was applied."""
        self._pending += _RECORD.pack(data_step, *marks)

    def flush(self) -> None:
        """Make the log durable; called before a checkpoint is written.

        Raises:
            OSError: If the disk is full; nothing is lost, the next call tries again.
        """
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END) // _RECORD.size * _RECORD.size
            if not end:
                sync(self.path.parent)  # where the name of a new file is
            os.lseek(descriptor, end, os.SEEK_SET)  # over what a full disk cut off
            data = self._pending
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._pending = b""


def read(path: Path) -> dict[int, Marks]:
    """Marks of the data steps on the way to the present state, by data step; empty without a file."""
    found: dict[int, Marks] = {}
    data = path.read_bytes() if path.exists() else b""
    for data_step, *marks in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        if data_step < 0:
            start = -1 - data_step
            found = {each: found[each] for each in found if each < start}
        else:
            found[data_step] = Marks(*marks)
    return found
