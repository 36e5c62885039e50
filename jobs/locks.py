"""Locks on files that die with their process; also where the file system has none.

Lustre mounted without `flock` and NFS without its lock daemon refuse what the kernel keeps elsewhere. There a
marker file of the `filelock` library stands for the lock: it names its process, and is taken over once that
is dead, if it was one of this machine.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jobs.attempts import RunBusyError

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
_PATIENCE_S = 600.0  # with a marker, whose process may have died on another machine


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[IO[bytes]]:
    """Hold the lock of a file, which is made if it is missing; yields it, open.

    Args:
        path: Of the file.
        wait: For whoever holds it.

    Raises:
        RunBusyError: If another process holds it, and this one does not wait, or has waited for too long.
    """
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise _busy(path, "wait for it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        else:
            yield file
            return
        from filelock import SoftFileLock, Timeout

        marker = path.with_name(f"{path.name}.owner")
        lock = SoftFileLock(marker, timeout=_PATIENCE_S if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            fix = f"wait for it; if the process and the machine that it names are dead, rm {marker}"
            raise _busy(marker, fix) from None
        try:
            yield file
        finally:
            lock.release()


def has_locks(folder: Path) -> bool:
    """Whether the kernel keeps locks for the file system of a folder, in which a file is made for that."""
    with (folder / "locks").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
    return True


def _busy(path: Path, fix: str) -> RunBusyError:
    return RunBusyError("one process at a time can work here, but another does.", where=str(path), fix=fix)
