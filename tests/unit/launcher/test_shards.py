"""Progress of an array, told from one listing and from what still runs."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import Attempt, read_attempts, start_ticks
from jobs.outcomes import write_json
from launcher import summary
from launcher.cli.main import run
from launcher.shards import Straggler
from launcher.states import RunState, State
from launcher.summary import summarise
from monitoring.journal import Record

NUM_SHARDS = 300
RUNNING = RunState(State.running, "shards", attempt=1)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An array of which all but two shards are finished, after 100 s each."""
    for name in ("attempts", "journal", "shards"):
        (tmp_path / name).mkdir()
    borders = [10 * shard for shard in range(NUM_SHARDS + 1)]
    write_json(tmp_path / "images.json", {"shards": borders, "images": borders[-1]})
    for shard in range(NUM_SHARDS - 2):
        add_shard(tmp_path, shard, seconds_ago=500, is_finished=True)
    return tmp_path


def add_shard(run_dir: Path, shard: int, *, seconds_ago: float, is_finished: bool = False) -> None:
    started, number = time.time() - seconds_ago, shard + 1
    attempt = Attempt(
        number=number,
        stage=f"shard:{shard}",
        host=socket.gethostname(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        slurm_job_id="",
        started=started,
        ended=started + 100 if is_finished else None,
        exit_code=0 if is_finished else None,
    )
    attempt.directory(run_dir).mkdir()
    attempt.save(run_dir)
    if is_finished:
        write_json(run_dir / "shards" / f"shard-{shard:05d}.json", {"seconds": 100.0})
    own = {"kind": "proposals", "shard": shard, "images": 10, "boxes": 9, "v": 1, "seq": 0}
    records = [
        {**own, "images_done": done, "time": started + 10 * done} for done in (1, 10 if is_finished else 4)
    ]
    path = run_dir / "journal" / f"{number:04d}.00-shard{shard}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_what_is_finished_is_counted_without_being_read(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_shard(run_dir, NUM_SHARDS - 1, seconds_ago=50)
    read: list[str] = []
    tail_records = summary.tail_records

    def tail(path: Path) -> list[Record]:
        read.append(path.name)
        return tail_records(path)

    monkeypatch.setattr(summary, "tail_records", tail)

    found = summarise(run_dir, RUNNING)

    assert (found.shards_done, found.num_shards) == (NUM_SHARDS - 2, NUM_SHARDS)
    assert (found.done, found.target) == (10 * (NUM_SHARDS - 2) + 4, 10 * NUM_SHARDS)
    assert len(read) == 50
    assert f"{NUM_SHARDS:04d}.00-shard{NUM_SHARDS - 1}.jsonl" in read


def test_a_shard_that_runs_is_read_however_old_its_attempt_is(run_dir: Path) -> None:
    (run_dir / "shards" / "shard-00000.json").unlink()

    assert summarise(run_dir, RUNNING).done == 10 * (NUM_SHARDS - 2)  # its journal tells of ten images


@pytest.mark.parametrize(("seconds_ago", "is_slow"), [(250, False), (3000, True)])
def test_a_shard_far_slower_than_the_others_is_named(
    run_dir: Path, seconds_ago: float, is_slow: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    add_shard(run_dir, NUM_SHARDS - 2, seconds_ago=seconds_ago)

    found = summarise(run_dir, RUNNING)

    assert [each.shard for each in found.stragglers] == [NUM_SHARDS - 2] * is_slow
    told: list[dict[str, Any]] = found.to_json()["stragglers"]
    assert [each["median_s"] for each in told] == [100.0] * is_slow
    assert found.problem.startswith(f"shard {NUM_SHARDS - 2} began 50" if is_slow else "")


@pytest.mark.parametrize("stage", ["shards", "shard:0/298"])
def test_of_shards_searched_one_after_the_other_the_last_begun_is_the_slow_one(
    run_dir: Path, stage: str
) -> None:
    """Shard 0 of such an element is finished; it has been at the next one since."""
    add_shard(run_dir, NUM_SHARDS - 2, seconds_ago=3000)
    attempt = read_attempts(run_dir)[-1]
    attempt.stage = stage
    attempt.save(run_dir)
    own = {"kind": "shard", "state": "running", "v": 1, "seq": 0, "attempt": attempt.number}
    records = [{**own, "shard": 0, "time": 1.0}, {**own, "shard": NUM_SHARDS - 2, "time": time.time() - 2000}]
    path = run_dir / "journal" / f"{attempt.number:04d}.00-shard0.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    [slow] = summarise(run_dir, RUNNING).stragglers

    assert slow.shard == NUM_SHARDS - 2
    assert slow.seconds == pytest.approx(2000, abs=10)


def test_a_straggler_is_told_in_words() -> None:
    assert (
        Straggler(7, 2520.0, 600.0).words()
        == "shard 7 began 42.0 min ago and is not done, others took 10.0 min"
    )


def test_an_ended_shard_is_no_straggler(run_dir: Path) -> None:
    add_shard(run_dir, NUM_SHARDS - 2, seconds_ago=3000)
    [attempt] = [each for each in read_attempts(run_dir) if each.stage == f"shard:{NUM_SHARDS - 2}"]
    attempt.ended, attempt.exit_code = time.time(), 1
    attempt.save(run_dir)

    assert summarise(run_dir, RUNNING).stragglers == []


def test_attempts_are_read_again_only_where_they_changed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_attempts(run_dir)
    write_json(run_dir / "attempts" / "0001" / "attempt.json", {**before[0].__dict__, "cause": "crash"})
    read: list[str] = []
    read_text = Path.read_text

    def counted(path: Path, **options: Any) -> str:
        read.append(path.parent.name)
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", counted)

    assert read_attempts(run_dir)[0].cause == "crash"
    assert read == ["0001"]


def test_nothing_searched_yet_is_no_progress(tmp_path: Path) -> None:
    write_json(tmp_path / "images.json", {"shards": [0, 5, 10]})

    assert summarise(tmp_path, RUNNING).done is None
    assert run(["--runs", str(tmp_path), "status"]) == 0
