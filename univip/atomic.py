"""Files that appear whole or not at all, also after a power cut.

Written under a temporary name beside the file, flushed, renamed, and the folder flushed: a reader sees the
old content or the new one. Who may read the file is decided by the umask, as for any other file.
"""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: renamed to it, durably, if the body succeeds, else removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` left that were killed; only its one writer may ask for that."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Have the next read of a flushed file come from the disk, where the system can drop what it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # advice that a file system need not take: then its memory is read, no harm
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
