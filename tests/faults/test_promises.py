"""What the training job does about everything else that goes wrong around it, seen from outside."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from univip.checkpoint import layout

if TYPE_CHECKING:
    from conftest import Job, Run, Runs

pytestmark = pytest.mark.slow
START = Callable[..., "Job"]


def copy_checkpoints(source: Run, target: Run) -> None:
    shutil.copytree(source.checkpoints, target.checkpoints)
    shutil.copy(source.directory / "ledger.jsonl", target.directory)


def damage(checkpoint: Path) -> None:
    """Flip one bit in the middle of the tensors."""
    path = checkpoint / layout.TENSORS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_a_planted_nan_and_a_planted_kill_cost_one_rollback_and_one_restart(runs: Runs, start: START) -> None:
    run = runs.new("planted", workers=2)
    job = start(run, plant="nan:parameter@8,kill:1@14")

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2, plant="nan:parameter@8").digest()
    assert run.digest() != runs.undisturbed(2).digest()
    assert [record["at"] for record in run.ledger("rollback")] == [8]
    assert [record["cause"] for record in run.records("restart")] == ["killed"]
    begin, end = run.ledger("rollback")[0]["window"]
    assert run.lost() == list(range(begin, end))


def test_a_second_process_on_the_same_run_is_refused_and_the_first_goes_on(runs: Runs, start: START) -> None:
    run = runs.new("twice", workers=2)
    first = start(run)
    first.until(first.ranks, "a rank")
    second = start(run)

    assert second.wait() == 5
    what, where, fix = second.stderr.splitlines()
    assert f"process {first.process.pid}" in what
    assert "where:" in where
    assert "univip cancel" in fix
    assert not list((run.directory / "attempts" / "0002").glob("round-*"))

    assert first.wait() == 0, first.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert run.records("restart") == []
    assert {record["outcome"] for record in run.records("checkpoint")} == {"success"}


@pytest.mark.parametrize("to_all", [False, True], ids=["to the agent", "to every process"])
def test_a_request_to_stop_saves_the_data_step_it_meets(runs: Runs, start: START, to_all: bool) -> None:
    run = runs.new("stopped", workers=2)
    job = start(run)
    job.until(lambda: run.reached() >= 4, "data step 4")
    if to_all:  # as SLURM does, before the time limit and at preemption
        os.killpg(job.process.pid, signal.SIGUSR2)
        os.killpg(job.process.pid, signal.SIGTERM)
    else:
        os.kill(job.process.pid, signal.SIGTERM)

    assert job.wait() == 75, job.stderr
    stopped_at = run.reached()
    assert stopped_at < runs.target
    assert layout.data_steps(run.checkpoints)[-1] == stopped_at
    layout.verify(run.checkpoints / layout.name_of(stopped_at))

    job = start(run)
    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert [record["data_step"] for record in run.records("restore")] == [stopped_at] * 2
    assert run.records("restart") == []


def test_a_damaged_newest_checkpoint_is_passed_over(runs: Runs, start: START) -> None:
    whole, run = runs.undisturbed(2), runs.new("damaged", workers=2)
    copy_checkpoints(whole, run)
    newest = run.checkpoints / layout.name_of(runs.target)
    damage(newest)

    job = start(run)

    assert job.wait() == 0, job.stderr
    assert run.digest() == whole.digest()
    assert [record["checkpoint"] for record in run.records("corruption")] == [newest.name]
    assert (run.checkpoints / "abandoned" / "damaged" / newest.name).is_dir()


def test_a_crash_that_comes_back_every_time_ends_on_its_budget(runs: Runs, start: START) -> None:
    run = runs.new("crashing", workers=2, overrides=["resilience.max_restarts=2"])
    copy_checkpoints(runs.undisturbed(2), run)
    for data_step in layout.data_steps(run.checkpoints):
        damage(run.checkpoints / layout.name_of(data_step))
    before = sorted(run.checkpoints.rglob("*"))

    job = start(run)

    assert job.wait() == 76
    assert "every checkpoint is damaged" in job.stderr
    assert len(list(run.directory.glob("attempts/0001/round-*"))) == 3
    assert len(run.records("restart")) == 2
    assert sorted(run.checkpoints.rglob("*")) == before


def test_training_goes_on_while_checkpoints_cannot_be_written(runs: Runs, start: START) -> None:
    run = runs.new("full", workers=2)
    job = start(run)
    job.until(lambda: run.reached() >= 4, "data step 4")
    writer = job.ranks()[0]
    # Room for the journal and none for a checkpoint: the write ends as on a full disk.
    _, hard = resource.prlimit(writer, resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    def failures() -> list[int]:
        return [each["data_step"] for each in run.records("checkpoint") if each["outcome"] == "failure"]

    (failed,) = job.until(failures, "a failed checkpoint")[:1]
    newest = layout.data_steps(run.checkpoints)[-1]
    assert newest < failed
    layout.verify(run.checkpoints / layout.name_of(newest))
    job.until(lambda: run.reached() > failed + 1, "steps after it")
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (hard, hard))

    assert job.wait() == 0, job.stderr
    assert run.digest() == runs.undisturbed(2).digest()
    assert run.records("restart") == []


def test_a_world_that_cannot_hold_the_batch_is_refused(runs: Runs, start: START) -> None:
    run = runs.new("world", workers=3, overrides=["train.global_batch=2"])

    refused = start(run)

    assert refused.wait() == 77
    what, where, fix = refused.stderr.splitlines()
    assert "must be at most `train.global_batch` = 2, but is 3" in what
    assert "where:" in where
    assert "start at most 2 ranks" in fix
    assert not run.checkpoints.exists()
    assert len(list(run.directory.glob("attempts/*/round-*"))) == 1


def test_data_edited_under_a_run_are_refused(runs: Runs, start: START, tmp_path: Path) -> None:
    data = shutil.copytree(runs.data, tmp_path / "data")
    run = runs.new("edited", workers=1, overrides=[f"data.root={data}"])
    path = data / "annotations" / f"instances_{runs.split}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["images"].pop()
    path.write_text(json.dumps(document), encoding="utf-8")

    for kind, wrong in (
        ("prepare", "must be those the run was made for"),
        ("train", "must hold usable images"),
    ):
        job = start(run, kind=kind)
        assert job.wait() == 77
        what, where, _ = job.stderr.splitlines()
        assert wrong in what
        assert str(data) in where
        shutil.rmtree(data / "images", ignore_errors=True)
    assert layout.data_steps(run.checkpoints) == [0]
