"""When the picture of the last samples is drawn, and that nothing about it reaches who trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobs import last_samples
from jobs.config import Config
from univip.checkpoint import layout


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.records.append({"kind": kind, **fields})


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def add_checkpoint(run_dir: Path, data_step: int) -> None:
    (run_dir / "checkpoints" / layout.name_of(data_step)).mkdir(parents=True)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Data steps that were drawn, in order; the first poll comes at once."""
    steps: list[int] = []
    monkeypatch.setattr(
        last_samples, "draw", lambda config, run_dir, data_step, notes: steps.append(data_step)
    )
    monkeypatch.setattr(last_samples, "_FIRST_POLL_S", 0.01)
    return steps


def test_the_step_behind_each_new_checkpoint_is_drawn_once(tmp_path: Path, drawn: list[int]) -> None:
    with last_samples.pictured(Config(), tmp_path, Notes(), every_s=0.01):
        time.sleep(0.1)
        assert drawn == []  # nothing is trained yet
        for data_step in (0, 30, 60):
            add_checkpoint(tmp_path, data_step)
            wait_for(partial(drawn.__contains__, max(data_step - 1, 0)))
        # A rollback put the newest one aside.
        (tmp_path / "checkpoints" / layout.name_of(60)).rmdir()
        wait_for(lambda: len(drawn) > 3)
        time.sleep(0.1)

    assert drawn == [0, 29, 59, 29]
    assert "last-samples" not in {thread.name for thread in threading.enumerate()}


def test_checkpoints_in_quick_succession_are_not_all_drawn(tmp_path: Path, drawn: list[int]) -> None:
    with last_samples.pictured(Config(), tmp_path, Notes(), every_s=60):
        for data_step in range(20):
            add_checkpoint(tmp_path, data_step)
            time.sleep(0.01)
        wait_for(lambda: drawn)

    assert len(drawn) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("odd")])
def test_a_picture_that_fails_is_recorded_and_tried_with_the_next_checkpoint(
    tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        drawn.append(-1)
        raise error

    good, notes = last_samples.draw, Notes()
    monkeypatch.setattr(last_samples, "draw", fail)
    add_checkpoint(tmp_path, 10)
    with last_samples.pictured(Config(), tmp_path, notes, every_s=0.01):
        wait_for(lambda: notes.records)
        time.sleep(0.1)
        monkeypatch.setattr(last_samples, "draw", good)
        add_checkpoint(tmp_path, 20)
        wait_for(lambda: len(drawn) > 1)

    assert drawn == [-1, 19]
    assert notes.records == [{"kind": "samples", "data_step": 9, "outcome": "failure", "what": str(error)}]


def test_a_file_system_that_hangs_keeps_nobody_waiting(
    tmp_path: Path, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(last_samples, "draw", lambda *_: (drawn.append(0), let_go.wait(20)))
    monkeypatch.setattr(last_samples, "_PATIENCE_S", 0.05)
    add_checkpoint(tmp_path, 0)

    start = time.monotonic()
    with last_samples.pictured(Config(), tmp_path, Notes()):
        wait_for(lambda: drawn)
    took_s = time.monotonic() - start
    let_go.set()

    assert took_s < 15
