"""A disk that can be looked at, and that fails on demand: at a chosen change, or at all of them, or slowly.

Inside the `with` block every change of files below a folder passes here: each `mkdir`, `write`, `fsync`,
`rename`, `unlink` and `rmdir` of this process, and the tensor file. Each is a *point* with a name, so that a
run can be ended at every point in turn, whatever the order in which threads reach them. After the end nothing
changes any more, as if the process were gone.

A power cut loses more than the process: what `Durable` has not seen reach the disk by an `fsync` of the file,
and of the folder for its name, is not there afterwards.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from univip.checkpoint import writer

_PATHS = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "truncate")
_DESCRIPTORS = ("fsync", "write")
_TENSORS = "save_file"
_RANDOM_NAME = re.compile(r"[0-9a-f]{32}")


class Dead(BaseException):
    """The process has ended here; nothing may catch it."""


class Storage:
    """The disk below one folder, inside a `with` block.

    Args:
        root: The folder.
        die_at: The point at which this process ends; empty: it does not.
        fail_at: The point from which `failures` changes fail with `error_number`.
        failures: How many.
        error_number: As in `errno`.
        delay_s: What every change takes longer.
        durable: Told of every `fsync`.

    Attributes:
        is_armed: Whether points count.
        points: Met so far, while it was armed.
        is_dead: Whether the process has ended.
        failed: Changes that have failed so far.
    """

    def __init__(
        self,
        root: Path,
        *,
        die_at: str = "",
        fail_at: str = "",
        failures: int = 0,
        error_number: int = 0,
        delay_s: float = 0.0,
        durable: Durable | None = None,
    ) -> None:
        self.root = root
        self.die_at = die_at
        self.fail_at = fail_at
        self.failures = failures
        self.error_number = error_number
        self.delay_s = delay_s
        self.durable = durable
        self.is_armed = False
        self.is_dead = False
        self.failed = 0
        self.points: list[str] = []
        self._met = Counter[str]()
        self._lock = threading.RLock()
        self._real: list[tuple[Any, str, Any]] = []
        self._excepthook = threading.excepthook

    def __enter__(self) -> Storage:
        for module, names, path_of in (
            (os, _PATHS, _path_of_arguments),
            (os, _DESCRIPTORS, _path_of_descriptor),
            (writer, (_TENSORS,), lambda tensors, path: Path(path)),
        ):
            for name in names:
                real = getattr(module, name)
                self._real.append((module, name, real))
                setattr(module, name, self._watched(name, real, path_of))
        threading.excepthook = self._of_thread
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, real in self._real:
            setattr(module, name, real)
        threading.excepthook = self._excepthook

    def _of_thread(self, what: threading.ExceptHookArgs) -> None:
        if what.exc_type is not Dead:  # a thread of a process that is gone says nothing
            self._excepthook(what)

    def _watched(self, name: str, real: Callable[..., Any], path_of: Callable[..., Path]) -> Any:
        def act(*arguments: Any, **named: Any) -> Any:
            path = path_of(*arguments, **named)
            if not path.is_relative_to(self.root):
                return real(*arguments, **named)
            with self._lock:
                self._meet(name, path, arguments)
                result = real(*arguments, **named)
                if name == "fsync" and self.durable is not None:
                    self.durable.sync(path)
            return result

        return act

    def _meet(self, name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        """Count one point, and do there what is to be done."""
        if self.is_dead:
            raise Dead
        if not self.is_armed:
            return
        what = f"{name} {_RANDOM_NAME.sub('*', str(path.relative_to(self.root)))}"
        self._met[what] += 1
        point = f"{what} #{self._met[what]}"
        self.points.append(point)
        if self.delay_s:
            time.sleep(self.delay_s)
        if point == self.die_at:
            self.is_dead = True
            with suppress(OSError):
                self._leave_half(name, path, arguments)
            raise Dead
        if self.error_number and (point == self.fail_at or 0 < self.failed < self.failures):
            self.failed += 1
            raise OSError(self.error_number, os.strerror(self.error_number), str(path))

    def _leave_half(self, name: str, path: Path, arguments: tuple[Any, ...]) -> None:
        """A write that was cut off in the middle."""
        real = {each: function for _, each, function in self._real}
        if name == "write":
            real[name](arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif name == _TENSORS:
            real[name](*arguments)
            real["truncate"](path, path.stat().st_size // 2)


class Durable:
    """What is on the disk for certain: contents as of the last `fsync` of each file, names of each folder.

    Args:
        root: The folder; all that is in it now counts as durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: dict[int, int] = {}  # inode -> open descriptor, so that no number is used twice
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}  # -> name: inode, is a folder
        for folder, _, names in os.walk(root):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                self.sync(path)

    def sync(self, path: Path) -> None:
        """This file or folder was flushed."""
        status = path.stat()
        if status.st_ino not in self._held:
            self._held[status.st_ino] = os.open(path, os.O_RDONLY)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = {
                entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(path)
            }
        else:
            self._contents[status.st_ino] = path.read_bytes()

    def cut(self, draws: random.Random) -> None:
        """Leave only what is durable; a file that has a name and was never flushed holds anything."""
        after = self.root.with_name(f"{self.root.name}-after-the-cut")
        self._rebuild(self.root.stat().st_ino, after, draws)
        shutil.rmtree(self.root)
        after.rename(self.root)

    def close(self) -> None:
        """Give back the inodes."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _rebuild(self, inode: int, target: Path, draws: random.Random) -> None:
        target.mkdir()
        for name, (each, is_folder) in self._names.get(inode, {}).items():
            if is_folder:
                self._rebuild(each, target / name, draws)
            else:
                junk = draws.choice([b"", bytes(64), b'{"v": 1, "ki'])
                (target / name).write_bytes(self._contents.get(each, junk))


def _path_of_arguments(path: Any, *_: Any, dir_fd: int | None = None, **__: Any) -> Path:
    name = os.fsdecode(path) if not isinstance(path, int) else str(_path_of_descriptor(path))
    return _path_of_descriptor(dir_fd) / name if dir_fd is not None else Path(name).absolute()


def _path_of_descriptor(descriptor: int, *_: Any) -> Path:
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:  # a pipe that was closed meanwhile, say: none of our files
        return Path()
