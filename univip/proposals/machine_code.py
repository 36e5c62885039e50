"""Machine code: compiled once per user and version, then loaded from a private cache.

Compiling the search takes half a minute, so it must happen once, before many processes start at the same
time. A cache directory is named by everything the machine code depends on (sources, numba, Python, processor)
and appears whole or not at all: a process that finds none compiles into a directory of its own and renames
it, and of several at once the first one wins. So nothing ever writes into a directory that others read, which
numba's own index would not survive, and no lock is needed on a network file system. Cached code is executed,
so a directory that somebody else could have written is not used.

Every function is compiled for exactly the types it is declared with, when its module is imported. This module
and the ones that use it load numba (a second): import them where they are used, never for `--help`.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
from llvmlite import binding
from numba.core.caching import UserProvidedCacheLocator

_logger = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Locator(UserProvidedCacheLocator):
    """Where numba finds machine code: by module, wherever the sources lie, since jobs run copies of them."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """Folder below the directory of the cache, which is named by the content of the sources."""
        return Path(py_file).stem


class Store:
    """Where the machine code of some modules comes from and goes to.

    Args:
        name: Of the directory, before the version.
        modules: Those that compile into it; editing one of them is another directory, since callers contain
            their callees.

    Attributes:
        directory: Given to numba; None without a directory that can be trusted.
    """

    def __init__(self, name: str, *modules: str) -> None:
        self.directory: Path | None = None
        self._final: Path | None = None  # set while `directory` is one of our own, not yet published
        try:
            root = cache_root()
            _private(root)
            final = root / f"{name}-{_version(modules)}"
            if final.is_dir():
                _private(final)
                self.directory = final
            else:
                self.directory = Path(tempfile.mkdtemp(prefix="compiling-", dir=root))
                self._final = final
                atexit.register(self._discard)
        except OSError as error:
            _logger.warning(
                "`%s` is compiled again by every process, up to half a minute each: its cache cannot be used."
                "\n  where: %s\n  fix:   export XDG_CACHE_HOME=/a/directory/of/yours",
                name,
                error,
            )

    def compiled(self, signature: object) -> Callable[[_Function], _Function]:
        """Compile a function for these types, now, or load it from the cache.

        One thread, no reassociation of floating-point sums: the results must be those of OpenCV to the last
        bit. Python's own lock is not held meanwhile.
        """

        def decorate(function: _Function) -> _Function:
            # numba takes the directory from this global at the moment it sees the function.
            config: Any = numba.config
            before = config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES
            config.CACHE_DIR = str(self.directory or "")
            config.CACHE_LOCATOR_CLASSES = f"{__name__}.{Locator.__name__}"
            try:
                is_kept = self.directory is not None
                make: Any = numba.njit(signature, cache=is_kept, error_model="numpy", nogil=True)
                made: _Function = make(function)
            finally:
                config.CACHE_DIR, config.CACHE_LOCATOR_CLASSES = before
            return made

        return decorate

    def publish(self) -> None:
        """Give the directory its final name, once all of the modules are imported.

        Nothing to do if it has it already.
        """
        if self._final is None or self.directory is None:
            return
        try:
            self.directory.rename(self._final)
        except OSError:
            if not self._final.is_dir():
                raise
            self._discard()  # another process was first, with the same machine code
        self._final = None

    def _discard(self) -> None:
        """Remove what was not published; numba has everything in memory by now."""
        if self._final is not None and self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)


def cache_root() -> Path:
    """Directory of this user's caches, as the XDG convention has it.

    Raises:
        OSError: If this user has no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "univip"
    except RuntimeError as error:
        raise FileNotFoundError(str(error)) from error


def _private(directory: Path) -> None:
    """Make the directory, or check that nobody else can write to it.

    Raises:
        PermissionError: If it belongs to somebody else.
        OSError: If it cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{directory} must be a directory of this user, but is not")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{directory} must be writable by this user alone, but is not")


def _version(modules: Sequence[str]) -> str:
    """Name for everything that the machine code depends on."""
    digest = hashlib.sha256()
    for name in ("machine_code", *modules):
        source = Path(__file__).with_name(f"{name}.py")
        digest.update(source.read_bytes())
    features = binding.get_host_cpu_features().flatten()
    versions = numba.__version__, llvmlite.__version__, platform.python_version()
    digest.update("\n".join([*versions, binding.get_host_cpu_name(), features]).encode())
    return digest.hexdigest()[:16]
