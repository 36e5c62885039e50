"""Locks on files, where the kernel keeps them and where it does not."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs import locks
from jobs.attempts import RunBusyError
from jobs.locks import has_locks, locked


@pytest.fixture(params=[0, errno.ENOSYS, errno.ENOLCK])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to lock; also on file systems that answer like Lustre and NFS without locks."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, "no locks here")

    if request.param:
        monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path / "lock"


def test_one_holds_it_and_the_next_has_it_afterwards(path: Path) -> None:
    with (
        locked(path),
        pytest.raises(RunBusyError, match="one process at a time"),
        locked(path, wait=False),
    ):
        pass

    with locked(path, wait=False):
        pass


def test_who_waits_has_it_next(path: Path) -> None:
    order = []

    def second() -> None:
        with locked(path):
            order.append(2)

    with locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.3)
        order.append(1)
    waiting.join()

    assert order == [1, 2]


def test_an_error_inside_gives_it_back(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError

    with locked(path, wait=False):
        pass


HOLDER = """
import fcntl, os, signal, sys
from pathlib import Path
from jobs.locks import locked
def refuse(*_):
    raise OSError(int(sys.argv[2]), "no locks here")
if sys.argv[2] != "0":
    fcntl.flock = refuse
with locked(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_free_again_once_its_holder_was_killed(path: Path, request: pytest.FixtureRequest) -> None:
    code = request.node.callspec.params["path"]
    killed = subprocess.run([sys.executable, "-c", HOLDER, str(path), str(code)], check=False)
    assert killed.returncode == -9
    assert path.with_name("lock.owner").exists() == bool(code)

    with locked(path):
        pass


def test_the_marker_of_a_process_of_another_machine_is_left_alone_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.2)
    marker = tmp_path / "lock.owner"
    marker.write_text("17\nanother-machine\n")

    with pytest.raises(RunBusyError, match=r"lock\.owner"), locked(tmp_path / "lock"):
        pass

    assert marker.exists()


def test_another_error_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(fcntl, "flock", fail)

    with pytest.raises(OSError, match="the disk is broken"), locked(tmp_path / "lock"):
        pass
    with pytest.raises(OSError, match="the disk is broken"):
        has_locks(tmp_path)


def test_whether_a_file_system_has_locks(path: Path, request: pytest.FixtureRequest) -> None:
    assert has_locks(path.parent) == (request.node.callspec.params["path"] == 0)
