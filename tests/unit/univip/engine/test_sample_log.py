from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from univip.engine.sample_log import Marks, SampleLog, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.bin"


def follow(path: Path, start: int, stop: int, *, views: int = 0) -> None:
    """One round: load the state of `start`, apply the data steps up to `stop`, write the log."""
    log = SampleLog(path)
    log.start(start)
    for data_step in range(start, stop):
        log.add(data_step, Marks(2**64 - 1 - data_step, views))
    log.flush()


def test_what_was_applied_can_be_read(path: Path) -> None:
    follow(path, 0, 3, views=7)

    assert read(path) == {step: Marks(2**64 - 1 - step, 7) for step in range(3)}


def test_without_a_file_nothing_was_applied(path: Path) -> None:
    assert read(path) == {}


def test_a_state_that_is_loaded_makes_void_what_came_after_it(path: Path) -> None:
    follow(path, 0, 6, views=1)
    follow(path, 4, 5, views=2)

    assert {step: marks.views for step, marks in read(path).items()} == {0: 1, 1: 1, 2: 1, 3: 1, 4: 2}


def test_what_was_not_flushed_is_gone_with_the_process(path: Path) -> None:
    follow(path, 0, 2)
    log = SampleLog(path)
    log.start(1)
    log.add(1, Marks(0, 0))

    assert read(path) == {step: Marks(2**64 - 1 - step, 0) for step in range(2)}


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_record_cut_off_by_a_power_cut_does_not_shift_those_that_follow(path: Path, cut: int) -> None:
    follow(path, 0, 3, views=1)
    os.truncate(path, path.stat().st_size - cut)

    assert set(read(path)) == {0, 1}
    follow(path, 2, 4, views=2)

    assert {step: marks.views for step, marks in read(path).items()} == {0: 1, 1: 1, 2: 2, 3: 2}


def test_a_full_disk_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, write = SampleLog(path), os.write
    log.start(0)
    log.add(0, Marks(1, 1))
    log.add(1, Marks(2, 2))

    def little(left: list[int]) -> Callable[[int, bytes], int]:
        def take(descriptor: int, data: bytes) -> int:
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data[: left.pop()])

        return take

    monkeypatch.setattr(os, "write", little([40]))
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    monkeypatch.setattr(os, "write", write)
    log.flush()

    assert read(path) == {0: Marks(1, 1), 1: Marks(2, 2)}
