"""Checkpoints exist whole or not at all, and a damaged one is never loaded."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from univip.checkpoint import layout, writer
from univip.checkpoint import manager as manager_module
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.errors import CheckpointError, ConfigError


class Numbers:
    """A training state of two tensors."""

    def __init__(self, data_step: int = 0) -> None:
        self.data_step = data_step
        self.step = data_step
        self.values = {"a": torch.full((3, 2), float(data_step)), "b": torch.arange(5, dtype=torch.bfloat16)}

    def tensors(self) -> dict[str, Tensor]:
        return self.values

    def facts(self) -> dict[str, object]:
        return {"data_step": self.data_step}

    def load(self, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        self.values = tensors
        assert isinstance(facts["data_step"], int)
        self.data_step = facts["data_step"]


class Events:
    """Keeps what the manager reports."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., CheckpointManager]:
    def manager(*steps: int, keep_last: int = 3) -> CheckpointManager:
        made = CheckpointManager(tmp_path / "checkpoints", keep_last=keep_last, observer=Events())
        for step in steps:
            made.save(Numbers(step), Origin(), wait=True)
        return made

    return manager


def test_a_state_comes_back_bit_for_bit(make: Callable[..., CheckpointManager]) -> None:
    manager = make(7)
    state = Numbers()

    found = manager.restore(state)

    assert found is not None
    assert found.data_step == state.data_step == 7
    assert torch.equal(state.values["a"], torch.full((3, 2), 7.0))
    assert state.values["b"].dtype is torch.bfloat16


def test_later_changes_of_the_state_do_not_reach_a_checkpoint_being_written(
    make: Callable[..., CheckpointManager],
) -> None:
    manager, state = make(), Numbers(4)

    manager.save(state, Origin())
    state.values["a"].fill_(-1.0)
    manager.wait()
    manager.load(4, state)

    assert torch.equal(state.values["a"], torch.full((3, 2), 4.0))


def test_host_memory_is_taken_once_and_again_only_where_a_tensor_is_another(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, tuple[int, list[float]]]] = []

    def write(
        directory: Path, tensors: dict[str, Tensor], manifest: layout.Manifest, **named: object
    ) -> layout.Manifest:
        written.append({name: (value.data_ptr(), value.tolist()) for name, value in tensors.items()})
        return manifest

    monkeypatch.setattr(writer, "write", write)
    manager, state = make(), Numbers()
    for data_step in (1, 2):
        state.values["a"].fill_(data_step)
        manager.save(state, Origin(), wait=True)
    del state.values["b"]
    state.values["a"] = torch.zeros(4)
    manager.save(state, Origin(), wait=True)

    first, second, third = written
    assert [first[name][0] for name in "ab"] == [second[name][0] for name in "ab"]
    assert second["a"][1] == [[2.0, 2.0]] * 3
    assert third == {"a": (third["a"][0], [0.0] * 4)}


def test_the_manifest_lists_every_file_and_tensor(make: Callable[..., CheckpointManager]) -> None:
    manager = make(7)

    manifest = json.loads((manager.path(7) / layout.MANIFEST).read_text())

    entry = manifest["files"][layout.TENSORS]
    assert entry["size_bytes"] == (manager.path(7) / layout.TENSORS).stat().st_size
    assert entry["tensors"]["b"] == {"dtype": "BF16", "shape": [5]}
    assert (manager.directory / layout.LATEST).read_text() == "step-000000007"


@pytest.mark.parametrize("name", [layout.TENSORS, layout.MANIFEST])
def test_damage_at_any_byte_is_noticed_and_the_older_checkpoint_used(
    make: Callable[..., CheckpointManager], name: str
) -> None:
    manager = make(1, 2)
    path = manager.path(2) / name
    whole = path.read_bytes()
    offsets = range(0, len(whole), max(1, len(whole) // 60))
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 0x10
        path.write_bytes(flipped)
        found = manager.newest_good()
        assert found is not None
        assert found.data_step == 1
        path.write_bytes(whole[:offset])
        found = manager.newest_good()
        assert found is not None
        assert found.data_step == 1
        assert list(found.passed_over) == [2]


def test_a_missing_tensor_file_is_passed_over(make: Callable[..., CheckpointManager]) -> None:
    manager = make(1, 2)
    (manager.path(2) / layout.TENSORS).unlink()

    found = manager.newest_good()

    assert found is not None
    assert found.data_step == 1


def test_an_old_checkpoint_under_a_newer_name_is_passed_over(make: Callable[..., CheckpointManager]) -> None:
    manager = make(1, 2)
    shutil.rmtree(manager.path(2))
    shutil.copytree(manager.path(1), manager.path(2))

    found = manager.newest_good()

    assert found is not None
    assert found.data_step == 1
    assert found.passed_over == {2: "the checkpoint must be of data step 2, but is of 1"}


def test_a_checkpoint_of_another_format_is_refused_and_stays(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make(3)
    with monkeypatch.context() as newer:
        newer.setattr(layout, "FORMAT", layout.FORMAT + 1)
        manager.save(Numbers(6), Origin(), wait=True)

    with pytest.raises(ConfigError, match=f"format must be {layout.FORMAT}, but is {layout.FORMAT + 1}"):
        manager.newest_good()

    assert layout.data_steps(manager.directory) == [3, 6]


def test_no_good_checkpoint_at_all_is_an_error_not_a_fresh_start(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(1)
    (manager.path(1) / layout.TENSORS).write_bytes(b"")

    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        manager.newest_good()


def test_a_full_disk_keeps_the_old_checkpoint_and_is_reported(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make(1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    manager.save(Numbers(2), Origin())
    manager.wait()

    assert layout.data_steps(manager.directory) == [1]
    assert not list(manager.directory.glob(f"{layout.TEMPORARY_PREFIX}*"))
    assert isinstance(manager.observer, Events)
    kind, fields = manager.observer.events[-1]
    assert (kind, fields["outcome"]) == ("checkpoint", "failure")
    with pytest.raises(CheckpointError, match="No space left"):
        manager.save(Numbers(2), Origin(), wait=True)


def test_on_a_full_disk_old_checkpoints_make_room_for_the_last_one(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for those in between: what is healthy and what is pinned stays."""
    manager, write = make(1, 2, 3, 4, keep_last=9), writer.save_file
    manager.mark_healthy(2)
    manager.pin(1, "a look")

    def full_with_four(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if len(layout.data_steps(manager.directory)) > 3:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write(tensors, path)

    monkeypatch.setattr(writer, "save_file", full_with_four)
    manager.save(Numbers(5), Origin())
    manager.wait()
    assert layout.data_steps(manager.directory) == [1, 2, 3, 4]

    manager.save(Numbers(5), Origin(), wait=True)

    assert layout.data_steps(manager.directory) == [1, 2, 4, 5]
    manager.verify(5)


def test_a_write_that_the_system_cuts_off_leaves_no_checkpoint(
    make: Callable[..., CheckpointManager],
) -> None:
    manager, state = make(1), Numbers(2)
    state.values["a"] = torch.zeros(100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            manager.save(state, Origin(), wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert layout.data_steps(manager.directory) == [1]
    assert not list(manager.directory.glob(f"{layout.TEMPORARY_PREFIX}*"))


def test_no_error_of_the_writing_thread_is_lost(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make()

    def broken(*_: object) -> None:
        raise TypeError("an attempt file of another version")

    monkeypatch.setattr(writer, "save_file", lambda *_: None)
    monkeypatch.setattr(layout, "checksum", broken)
    with pytest.raises(CheckpointError, match="of another version"):
        manager.save(Numbers(2), Origin(), wait=True)

    assert isinstance(manager.observer, Events)
    assert manager.observer.events[-1][1]["outcome"] == "failure"


def test_an_owner_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "checkpoints", still_owner=lambda: False)

    with pytest.raises(CheckpointError, match="a newer attempt owns this run"):
        manager.save(Numbers(1), Origin(), wait=True)

    assert layout.data_steps(manager.directory) == []


def test_pruning_keeps_the_last_two_healthy_and_the_oldest_on_probation(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(keep_last=2)
    for step in range(1, 9):
        manager.save(Numbers(step), Origin(), wait=True)
        if step in (1, 2, 3):
            manager.mark_healthy(step)

    # Of the healthy 1, 2, 3 the newest two stay; 4 is the next to become healthy; 7 and 8 are the last two.
    assert layout.data_steps(manager.directory) == [2, 3, 4, 7, 8]


def test_abandoned_checkpoints_cannot_be_resumed_but_can_be_looked_at(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(1, 2, 3)

    manager.abandon([2, 3], "rollback-001")

    assert manager.latest() == 1
    assert (manager.directory / layout.LATEST).read_text() == "step-000000001"
    layout.verify(manager.directory / layout.ABANDONED / "rollback-001" / "step-000000003")


def test_a_data_step_can_be_written_again_after_its_checkpoint_was_abandoned_twice(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(1, 2)
    manager.abandon([2], "damaged")
    manager.save(Numbers(2), Origin(), wait=True)
    manager.abandon([2], "damaged")

    names = sorted(path.name for path in (manager.directory / layout.ABANDONED / "damaged").iterdir())
    assert names == ["step-000000002", "step-000000002.2"]


def test_leftovers_of_interrupted_writes_are_never_seen_and_can_be_cleared(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(1)
    leftover = manager.directory / f"{layout.TEMPORARY_PREFIX}step-000000002-x"
    leftover.mkdir()
    (leftover / layout.TENSORS).write_bytes(b"half")
    (manager.directory / ".latest.7.tmp").write_text("step-0000")

    found = manager.newest_good()
    manager.clear_temporary()

    assert found is not None
    assert found.data_step == 1
    assert not list(manager.directory.glob(f"{layout.TEMPORARY_PREFIX}*"))


def test_the_digest_depends_on_names_shapes_and_bytes_and_on_nothing_else(tmp_path: Path) -> None:
    def digest(name: str, tensors: dict[str, Tensor]) -> str:
        manager = CheckpointManager(tmp_path / name)
        state = Numbers(1)
        state.values = tensors
        manager.save(state, Origin(line=len(name)), wait=True)
        return layout.digest(manager.path(1))

    base = digest("base", {"a": torch.arange(6.0), "b": torch.ones(2)})

    assert digest("same", {"b": torch.ones(2), "a": torch.arange(6.0)}) == base
    assert digest("shape", {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}) != base
    assert digest("name", {"c": torch.arange(6.0), "b": torch.ones(2)}) != base
    assert digest("bytes", {"a": torch.arange(6.0), "b": torch.ones(2) + 1e-7}) != base


def test_a_state_held_in_memory_is_found_without_reading_the_disk(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make(1, 2)
    monkeypatch.setattr(layout, "checksum", lambda path: pytest.fail(f"{path} was read"))

    found = manager.newest_good(or_held=True)

    assert found == (2, {}, True)
    assert manager.held is not None
    assert torch.equal(manager.held.tensors["a"], torch.full((3, 2), 2.0))
    assert manager.held.manifest == layout.read_manifest(manager.path(2))


def test_memory_is_no_reason_to_take_a_checkpoint_that_may_not_be_a_target(
    make: Callable[..., CheckpointManager],
) -> None:
    manager = make(1, 2)
    manager.mark_healthy(1)

    assert manager.newest_good(healthy_only=True, or_held=True) == (1, {}, False)
    assert manager.newest_good(at_most=1, or_held=True) == (1, {}, False)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bit_that_flips_in_memory_sends_a_rollback_to_the_disk(
    make: Callable[..., CheckpointManager], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = make(1, 2)
    assert manager.held is not None
    manager.held.tensors[name].view(-1)[-1:].view(torch.uint8)[0] ^= 1

    assert manager.newest_good(or_held=True) == (2, {}, False)
    assert "the copy of step-000000002 in memory has changed" in caplog.text


@pytest.mark.parametrize("what", ["cut off", "no manifest", "an older one", "written by another process"])
def test_memory_does_not_stand_for_a_checkpoint_that_is_not_on_the_disk_as_it_was_written(
    make: Callable[..., CheckpointManager], what: str
) -> None:
    manager, other = make(1, 2), make()
    if what == "cut off":
        path = manager.path(2) / layout.TENSORS
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "no manifest":
        (manager.path(2) / layout.MANIFEST).unlink()
    elif what == "an older one":
        shutil.rmtree(manager.path(2))
        shutil.copytree(manager.path(1), manager.path(2))
    else:
        shutil.rmtree(manager.path(2))
        other.save(Numbers(2), Origin(line=1), wait=True)

    found = manager.newest_good(or_held=True)

    is_there = what == "written by another process"
    assert found is not None
    assert (found.data_step, found.in_memory) == (2 if is_there else 1, False)


def test_nothing_is_held_while_a_checkpoint_is_written_and_after_it_could_not_be(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make(1)
    during: list[object] = []

    def full(*_: object) -> None:
        during.append(manager.held)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    manager.save(Numbers(2), Origin())
    manager.wait()

    assert during == [None]
    assert manager.held is None
    assert manager.newest_good(or_held=True) == (1, {}, False)


@pytest.fixture
def rotten(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Plants a disk that flips a bit of every file of one name; what is still in memory stays right."""

    def plant(name: str) -> list[str]:
        dropped: list[str] = []

        def drop(descriptor: int, offset: int, length: int, advice: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
            dropped.append(f"{path.parent.name}/{path.name}")
            if path.name == name:
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 0x10
                path.write_bytes(content)

        monkeypatch.setattr(os, "posix_fadvise", drop)
        monkeypatch.setattr(manager_module, "READ_BACK_EVERY", 2)
        return dropped

    return plant


def test_every_so_many_checkpoints_one_is_read_back_from_the_disk(
    make: Callable[..., CheckpointManager], rotten: Callable[[str], list[str]]
) -> None:
    dropped = rotten("nothing")

    manager = make(1, 2, 3, 4)

    names = (layout.MANIFEST, layout.TENSORS)
    assert sorted(dropped) == [f"step-00000000{step}/{name}" for step in (2, 4) for name in names]
    assert layout.data_steps(manager.directory) == [1, 2, 3, 4]
    assert isinstance(manager.observer, Events)
    assert {kind for kind, _ in manager.observer.events} == {"checkpoint"}


@pytest.mark.parametrize("name", [layout.TENSORS, layout.MANIFEST])
def test_what_the_disk_does_not_give_back_is_put_aside_before_it_can_be_a_target(
    make: Callable[..., CheckpointManager], rotten: Callable[[str], list[str]], name: str
) -> None:
    manager = make(1)
    rotten(name)

    manager.save(Numbers(2), Origin())
    manager.wait()

    assert not manager.mark_healthy(2)
    assert manager.held is None
    assert manager.newest_good(or_held=True) == (1, {}, False)
    assert (manager.directory / layout.LATEST).read_text() == "step-000000001"
    assert (manager.directory / layout.ABANDONED / layout.DAMAGED / "step-000000002").is_dir()
    assert isinstance(manager.observer, Events)
    (_, corruption), (_, failure) = manager.observer.events[-2:]
    assert corruption["checkpoint"] == "step-000000002"
    assert (failure["data_step"], failure["outcome"]) == (2, "failure")
    assert str(failure["what"]).startswith(str(corruption["what"]))
    manager.save(Numbers(3), Origin(), wait=True)
    assert manager.last_success[0] == 3


def test_the_last_checkpoint_of_a_round_must_be_what_the_disk_gives_back(
    make: Callable[..., CheckpointManager], rotten: Callable[[str], list[str]]
) -> None:
    manager = make(1)
    rotten(layout.TENSORS)

    with pytest.raises(CheckpointError, match="could not be written: the file does not match its checksum"):
        manager.save(Numbers(2), Origin(), wait=True)


def test_a_file_system_without_advice_is_read_back_all_the_same(
    make: Callable[..., CheckpointManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    monkeypatch.setattr(manager_module, "READ_BACK_EVERY", 1)

    assert make(1).latest() == 1
