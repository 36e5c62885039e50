"""The disk of the drill, and what the files of a run are worth on one that loses power."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jobs.drill.storage import Dead, Durable, Storage
from univip.atomic import sync, write_text
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.engine.sample_log import Marks, SampleLog, read
from univip.resilience.ledger import Ledger


class Numbers:
    """A training state of one tensor."""

    step = data_step = 7

    def tensors(self) -> dict[str, Tensor]:
        return {"a": torch.arange(9.0)}

    def facts(self) -> dict[str, object]:
        return {}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        raise AssertionError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def cut(durable: Durable) -> None:
    durable.cut(random.Random(0))
    durable.close()


def test_what_was_not_flushed_is_gone_after_a_power_cut(root: Path) -> None:
    (root / "old").write_text("before")
    durable = Durable(root)
    with Storage(root, durable=durable):
        (root / "old").write_text("after")
        (root / "nameless").write_text("flushed, but its folder was not")
        sync(root / "nameless")
        write_text(root / "new", "kept")
        (root / "old").rename(root / "renamed")
    cut(durable)

    assert {path.name: path.read_text() for path in root.iterdir() if path.name in ("old", "new")} == {
        "old": "before",
        "new": "kept",
    }
    assert not (root / "renamed").exists()


def test_a_file_whose_name_was_flushed_and_content_was_not_holds_something_else(root: Path) -> None:
    durable = Durable(root)
    with Storage(root, durable=durable):
        (root / "half").write_text("content")
        sync(root)
    cut(durable)

    assert (root / "half").read_bytes() != b"content"


def test_after_the_end_of_the_process_nothing_changes_any_more(root: Path) -> None:
    with Storage(root) as whole:
        whole.is_armed = True
        write_text(root / "a", "1")
    assert [point.split(" ")[0] for point in whole.points] == ["fsync", "replace", "unlink", "fsync"]

    with Storage(root, die_at=whole.points[1]) as storage:
        storage.is_armed = True
        with pytest.raises(Dead):
            write_text(root / "a", "2")
        with pytest.raises(Dead):
            (root / "b").mkdir()

    assert storage.is_dead
    assert (root / "a").read_text() == "1"
    (root / "b").mkdir()  # the real disk is back


def test_a_disk_that_fails_is_well_again_after_some_changes(root: Path) -> None:
    with Storage(root, fail_at="mkdir x #1", failures=2, error_number=errno.ENOSPC) as storage:
        storage.is_armed = True
        for name in ("x", "y"):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                (root / name).mkdir()
        (root / "z").mkdir()

    assert storage.failed == 2


def test_a_power_cut_takes_nothing_of_what_a_run_was_told_is_durable(root: Path) -> None:
    durable = Durable(root)
    with Storage(root, durable=durable):
        manager, ledger, samples = (
            CheckpointManager(root / "checkpoints"),
            Ledger(root / "ledger.jsonl"),
            SampleLog(root / "samples.bin"),
        )
        samples.start(0)
        samples.add(0, Marks(1, 2))
        samples.flush()
        manager.save(Numbers(), Origin(), wait=True)  # type: ignore[arg-type]
        ledger.append("skip", data_step=3)
    cut(durable)

    assert manager.newest_good() is not None
    assert manager.verify(7).data_step == 7
    assert ledger.decisions().skipped == {3}
    assert read(root / "samples.bin") == {0: Marks(1, 2)}
