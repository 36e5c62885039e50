"""The trainer on synthetic views in one process: skip, rollback, resume, and what the ledger steers."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.toy_training import IMAGES, TARGET, Events, Killed, digest, make_trainer
from univip.checkpoint import layout, manager
from univip.checkpoint.manager import CheckpointManager
from univip.engine import cadence
from univip.engine.sample_log import Marks, read
from univip.engine.trainer import Ending
from univip.errors import RollbackExhaustedError
from univip.resilience.guard import Verdict
from univip.resilience.ledger import Ledger


def test_a_run_ends_at_its_target_with_a_checkpoint_there(tmp_path: Path) -> None:
    events = Events()

    ending = make_trainer(tmp_path, events=events).run()

    assert ending is Ending.DONE
    assert CheckpointManager(tmp_path / "checkpoints").verify(TARGET).step == TARGET
    last = events.of("step")[-1]
    assert (last["data_step"], last["images"]) == (TARGET, TARGET * IMAGES)
    assert last["counts"] == {"too_small": TARGET}


def test_training_changes_the_weights_and_the_loss_is_finite(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, events=events)
    before = {name: value.clone() for name, value in trainer.state.tensors().items()}

    trainer.run()

    changed = [
        name
        for name, value in trainer.state.tensors().items()
        if name in before and not torch.equal(value, before[name])
    ]
    assert {name.split(".")[0] for name in changed} == {"online", "target"}
    for record in events.of("step"):
        assert isinstance(record["loss"], float)
        assert record["loss_min"] <= record["loss"] <= record["loss_max"]  # type: ignore[operator]


@pytest.mark.parametrize("die_at", range(0, TARGET, 3))
def test_a_run_that_dies_and_resumes_ends_with_the_digest_of_one_that_did_not(
    tmp_path: Path, die_at: int
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    make_trainer(tmp_path / "whole").run()

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", die_at=die_at).run()
    make_trainer(tmp_path / "cut").run()

    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


@pytest.mark.parametrize("place", ["activation", "loss", "gradient"])
def test_after_a_skip_every_tensor_has_the_bytes_it_had_before(tmp_path: Path, place: str) -> None:
    trainer = make_trainer(tmp_path, plant=f"nan:{place}@5")
    before: dict[str, Tensor] = {}
    step = trainer._step
    verdicts = []

    def watched() -> object:
        before.clear()
        before.update({name: value.clone() for name, value in trainer.state.tensors().items()})
        phase = step()
        assert trainer._report is not None
        verdicts.append(trainer._report.judgement.verdict)
        if verdicts[-1] is Verdict.skip:
            after = trainer.state.tensors()
            assert set(after) == set(before)
            for name, value in after.items():
                assert value.numpy().tobytes() == before[name].numpy().tobytes(), name
        return phase

    trainer._step = watched  # type: ignore[method-assign, assignment]
    trainer.run()

    assert verdicts.count(Verdict.skip) == 1
    assert trainer.state.step == TARGET - 1
    records = [record for record in Ledger(tmp_path / "ledger.jsonl").read() if record["kind"] == "skip"]
    assert [(record["data_step"], record["where"]) for record in records] == [
        (5, "gradient" if place == "gradient" else "loss")
    ]


def test_a_rollback_ends_like_a_run_that_jumped_over_the_window_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "rolled").mkdir()
    (tmp_path / "jumped").mkdir()
    Ledger(tmp_path / "jumped" / "ledger.jsonl").append(
        "rollback", target=0, at=7, window=[6, 8], where="", reason=""
    )
    events = Events()

    make_trainer(tmp_path / "rolled", plant="nan:parameter@7", events=events).run()
    make_trainer(tmp_path / "jumped").run()

    assert digest(tmp_path / "rolled") == digest(tmp_path / "jumped")
    (rollback,) = events.of("rollback")
    # Checkpoints lie at 0, 2, 4, 6; the newest with two good steps after it is 4.
    assert (rollback["target"], rollback["window_start"], rollback["window_stop"]) == (4, 6, 8)
    assert rollback["steps_discarded"] == 3


def flip(tensor: Tensor) -> None:
    tensor.view(-1)[:1].view(torch.uint8)[0] ^= 1


# What happens to the state that is held, before the rollback -> where the rollback takes its state from.
SOURCES: dict[str, tuple[Callable[[CheckpointManager], object], str]] = {
    "held": (lambda manager: None, "memory"),
    "flipped": (lambda manager: flip(next(iter(manager._host.values()))), "disk"),
    "gone": (lambda manager: setattr(manager, "held", None), "disk"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_rollback_ends_with_the_same_bits_from_memory_and_from_the_disk(tmp_path: Path, case: str) -> None:
    happens, source = SOURCES[case]
    for name in ("rolled", "jumped"):
        (tmp_path / name).mkdir()
    Ledger(tmp_path / "jumped" / "ledger.jsonl").append("rollback", target=0, at=7, window=[6, 8])
    events = Events()
    trainer = make_trainer(tmp_path / "rolled", plant="nan:parameter@7", every_steps=4, events=events)
    decide = trainer.recovery.roll_back

    def decide_after(*arguments: Any) -> object:
        trainer.manager.wait()
        happens(trainer.manager)
        return decide(*arguments)

    trainer.recovery.roll_back = decide_after  # type: ignore[method-assign, assignment]
    trainer.run()
    make_trainer(tmp_path / "jumped", every_steps=4).run()

    # Of the checkpoints 0 and 4, the newest is the target: it saw three good steps.
    assert [(each["target"], each["abandoned"]) for each in events.of("rollback")] == [(4, 0)]
    assert [(each["checkpoint"], each["source"]) for each in events.of("restore")] == [
        ("step-000000004", source)
    ]
    assert digest(tmp_path / "rolled") == digest(tmp_path / "jumped")


def test_a_rollback_to_an_older_checkpoint_than_the_newest_reads_the_disk(tmp_path: Path) -> None:
    events = Events()

    make_trainer(tmp_path, plant="nan:parameter@7", events=events).run()

    assert [(each["checkpoint"], each["source"]) for each in events.of("restore")] == [
        ("step-000000004", "disk")
    ]


@pytest.mark.parametrize("place", ["buffer", "optimizer", "target"])
def test_damage_anywhere_in_the_state_is_rolled_back_before_a_step_takes_it(
    tmp_path: Path, place: str
) -> None:
    events = Events()

    make_trainer(tmp_path, plant=f"nan:{place}@7", events=events).run()

    (rollback,) = events.of("rollback")
    assert (rollback["data_step"], rollback["where"], rollback["target"]) == (7, "state", 4)
    assert all(record["loss"] == record["loss"] for record in events.of("step"))
    assert CheckpointManager(tmp_path / "checkpoints").verify(TARGET)


def test_after_a_rollback_nothing_of_the_abandoned_future_can_be_resumed(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, plant="nan:parameter@7")
    roll_back = trainer._roll_back
    left: list[int] = []

    def watched() -> object:
        phase = roll_back()
        left.extend(layout.data_steps(tmp_path / "checkpoints"))
        return phase

    trainer._roll_back = watched  # type: ignore[method-assign, assignment]
    trainer.run()

    assert max(left) == 4
    abandoned = tmp_path / "checkpoints" / "abandoned" / "rollback-001"
    assert [path.name for path in abandoned.iterdir()] == ["step-000000006"]


def test_a_death_between_decision_and_act_is_made_good_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "rolled").mkdir()
    make_trainer(tmp_path / "rolled", plant="nan:parameter@7").run()
    trainer = make_trainer(tmp_path / "cut", plant="nan:parameter@7")

    def die(*_: object) -> None:
        raise Killed

    trainer.manager.abandon = lambda steps, why: die() if why.startswith("rollback") and steps else None  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run()
    assert layout.data_steps(tmp_path / "cut" / "checkpoints")[-1] == 6
    make_trainer(tmp_path / "cut").run()

    assert digest(tmp_path / "cut") == digest(tmp_path / "rolled")


def test_too_many_rollbacks_stop_the_run_with_the_cause_and_what_to_do(tmp_path: Path) -> None:
    plant = "nan:parameter@3,nan:parameter@5,nan:parameter@9"

    with pytest.raises(RollbackExhaustedError) as caught:
        make_trainer(tmp_path, plant=plant, max_rollbacks=2).run()

    assert "resilience.max_rollbacks=5" in str(caught.value)
    assert "fix:" in str(caught.value)


def test_skips_in_a_row_suspect_the_state_and_roll_back(tmp_path: Path) -> None:
    events = Events()

    make_trainer(
        tmp_path, plant="nan:loss@5,nan:loss@6,nan:loss@7", max_consecutive_skips=2, events=events
    ).run()

    assert len(events.of("skip")) == 2
    assert [fields["window_stop"] for fields in events.of("rollback")] == [8]


def test_good_steps_before_a_restart_count_towards_the_health_of_a_checkpoint(tmp_path: Path) -> None:
    events = Events()
    with pytest.raises(Killed):
        make_trainer(tmp_path, die_at=4, healthy_after_steps=3).run()

    make_trainer(tmp_path, plant="nan:parameter@6", healthy_after_steps=3, events=events).run()

    # Of the checkpoints 0, 2, 4 the second saw two good steps before the death and two after it.
    assert [fields["target"] for fields in events.of("rollback")] == [2]


def test_skips_before_a_restart_are_in_a_row_with_those_after_it(tmp_path: Path) -> None:
    plant = "nan:loss@5,nan:loss@6,nan:loss@7"
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    make_trainer(tmp_path / "whole", plant=plant).run()
    events = Events()

    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", plant=plant, die_at=7).run()
    make_trainer(tmp_path / "cut", plant=plant, events=events).run()

    assert [fields["window_stop"] for fields in events.of("rollback")] == [8]
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


def test_an_interval_that_was_chosen_holds_after_a_restart_and_a_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cadence, "TRIAL_STEPS", 2)
    monkeypatch.setattr(cadence, "time", SimpleNamespace(perf_counter=count(step=2).__next__))  # 1 s a step
    monkeypatch.setattr(cadence, "interval_s", lambda *_: 3.2)
    events = Events()
    with pytest.raises(Killed):
        make_trainer(tmp_path, every_steps=0, die_at=8, events=events).run()
    monkeypatch.setattr(cadence, "interval_s", lambda *_: 1.0)  # it would choose another one now

    make_trainer(tmp_path, every_steps=0, plant="nan:parameter@10", events=events).run()

    # 0 and 2 are measured, at 4 the choice is made; from 6 the second process and the rollback from 10 go on.
    chosen = [record for record in Ledger(tmp_path / "ledger.jsonl").read() if record["kind"] == "cadence"]
    assert [(record["data_step"], record["every_steps"]) for record in chosen] == [(4, 3)]
    assert [each["target"] for each in events.of("rollback")] == [6]
    assert [each["data_step"] for each in events.of("checkpoint")] == [0, 2, 6, 9, 9, 12]


@pytest.mark.parametrize("every_steps", [2, 100])
def test_a_stop_request_ends_with_a_checkpoint_and_resumes_to_the_same_digest(
    tmp_path: Path, every_steps: int
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    make_trainer(tmp_path / "whole").run()
    asked = iter([False] * 5 + [True])

    stopped = make_trainer(tmp_path / "stopped", every_steps=every_steps, stop_requested=lambda: next(asked))

    assert stopped.run() is Ending.STOPPED
    assert CheckpointManager(tmp_path / "stopped" / "checkpoints").latest() == 6
    assert make_trainer(tmp_path / "stopped").run() is Ending.DONE
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over_and_its_place_taken_again(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    make_trainer(tmp_path / "whole").run()
    with pytest.raises(Killed):
        make_trainer(tmp_path / "cut", die_at=9).run()
    newest = CheckpointManager(tmp_path / "cut" / "checkpoints")
    (newest.path(8) / layout.TENSORS).write_bytes(b"garbage")
    events = Events()

    make_trainer(tmp_path / "cut", events=events).run()

    assert [fields["checkpoint"] for fields in events.of("corruption")] == ["step-000000008"]
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    newest.verify(8)
    assert (newest.directory / "abandoned" / "damaged" / "step-000000008").is_dir()


def test_training_goes_on_when_a_checkpoint_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, events=events)
    write = trainer.manager._write

    def full_at_four(tensors: dict[str, Tensor], manifest: layout.Manifest, blocked_s: float) -> None:
        with monkeypatch.context() as patch:
            if manifest.data_step == 4:
                patch.setattr(
                    "univip.checkpoint.writer.save_file",
                    lambda *_: (_ for _ in ()).throw(OSError(28, "full")),
                )
            write(tensors, manifest, blocked_s)

    trainer.manager._write = full_at_four  # type: ignore[method-assign]
    assert trainer.run() is Ending.DONE

    outcomes = {fields["data_step"]: fields["outcome"] for fields in events.of("checkpoint")}
    assert outcomes[4] == "failure"
    assert outcomes[2] == outcomes[TARGET] == "success"


def test_training_goes_on_when_the_disk_does_not_give_a_checkpoint_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(descriptor: int, *_: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == layout.TENSORS:
            os.truncate(path, 1000)

    (tmp_path / "whole").mkdir()
    (tmp_path / "spoilt").mkdir()
    make_trainer(tmp_path / "whole", plant="nan:parameter@7").run()
    monkeypatch.setattr(os, "posix_fadvise", spoil)
    monkeypatch.setattr(manager, "READ_BACK_EVERY", 2)
    events = Events()

    # The second of 0, 2, 4 is damaged, and 4 is written by a process that reads back none of its own.
    with pytest.raises(Killed):
        make_trainer(tmp_path / "spoilt", die_at=3, events=events).run()
    monkeypatch.setattr(manager, "READ_BACK_EVERY", 100)
    make_trainer(tmp_path / "spoilt", plant="nan:parameter@7", events=events).run()

    assert [each["data_step"] for each in events.of("corruption")] == [2]
    assert (tmp_path / "spoilt" / "checkpoints" / "abandoned" / "damaged" / "step-000000002").is_dir()
    assert [each["checkpoint"] for each in events.of("restore")] == ["step-000000000", "step-000000004"]
    assert digest(tmp_path / "spoilt") == digest(tmp_path / "whole")


def test_training_goes_on_when_a_checkpoint_cannot_be_marked_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = manager.write_text

    def full_for_marks(path: Path, text: str) -> None:
        if path.name == layout.HEALTHY:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_text(path, text)

    monkeypatch.setattr(manager, "write_text", full_for_marks)
    events = Events()

    assert make_trainer(tmp_path, events=events).run() is Ending.DONE

    failures = [fields for fields in events.of("checkpoint") if fields["outcome"] == "failure"]
    assert "No space left" in str(failures[0]["what"])
    assert events.of("healthy") == []


def test_a_planted_fault_happens_once_in_the_life_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make_trainer(tmp_path, plant="nan:loss@1", die_at=2, every_steps=100).run()
    events = Events()

    make_trainer(tmp_path, plant="nan:loss@1", events=events).run()

    assert events.of("skip") == []
    # The ledger remembers the skip: the batch is jumped over although it would be good now.
    assert json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[1])["data_step"] == 1
    assert CheckpointManager(tmp_path / "checkpoints").verify(TARGET).step == TARGET - 1


def test_damage_by_the_very_last_update_is_found_before_the_run_ends(tmp_path: Path) -> None:
    events = Events()
    trainer = make_trainer(tmp_path, events=events)
    step, parameter = trainer.state.optimizer.step, next(trainer.state.method.online.parameters())
    damage = iter([True])

    def damaging_step() -> None:
        step()
        if trainer.state.data_step == TARGET - 1 and next(damage, False):
            with torch.no_grad():
                parameter.view(-1)[0] = torch.nan

    trainer.state.optimizer.step = damaging_step  # type: ignore[method-assign, assignment]

    assert trainer.run() is Ending.DONE
    assert [fields["data_step"] for fields in events.of("rollback")] == [TARGET - 1]
    assert bool(trainer.state.norms().finite)
    assert CheckpointManager(tmp_path / "checkpoints").latest() == TARGET


def logged(run_dir: Path) -> list[int]:
    """Data steps in the sample log, each with the marks of its batch."""
    found = read(run_dir / "samples.bin")
    assert found == {step: Marks(1000 + step, 2**63 + step) for step in found}
    return sorted(found)


@pytest.mark.parametrize("die_at", [0, 3, 8])
def test_the_sample_log_holds_every_applied_step_once_whatever_happened(tmp_path: Path, die_at: int) -> None:
    with pytest.raises(Killed):
        make_trainer(tmp_path, plant="nan:parameter@7,nan:loss@10", die_at=die_at).run()
    make_trainer(tmp_path, plant="nan:parameter@7,nan:loss@10").run()

    # The rollback jumped over 6 and 7, the skip changed nothing.
    assert logged(tmp_path) == [0, 1, 2, 3, 4, 5, 8, 9, 11]


def test_no_checkpoint_holds_a_step_that_is_not_in_the_sample_log(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    save, seen = trainer.manager.save, []

    def watched(state: Any, *arguments: Any, **named: Any) -> float:
        seen.append((state.data_step, logged(tmp_path)))
        return save(state, *arguments, **named)

    trainer.manager.save = watched  # type: ignore[method-assign]
    trainer.run()

    assert len(seen) > TARGET // 2
    assert all(steps == list(range(data_step)) for data_step, steps in seen)
