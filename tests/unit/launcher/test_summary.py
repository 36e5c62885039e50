import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.outcomes import write_json
from launcher import summary as module
from launcher.states import RunState, State
from launcher.summary import Summary, summarise
from monitoring.journal import Record

RUNNING = RunState(State.running, "train", attempt=1)


def write(run_dir: Path, name: str, records: list[dict[str, Any]]) -> None:
    path = run_dir / "journal" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    envelope = {"v": 1, "seq": 0, "attempt": 1, "round": 0, "rank": 0, "step": None, "data_step": None}
    lines = [json.dumps({**envelope, **record}) for record in records]
    path.write_text("".join(f"{line}\n" for line in lines) + '{"torn')


def step(number: int, at: float, images: int, loss: Any = 3.5) -> dict[str, Any]:
    own = {"kind": "step", "time": at, "data_step": number, "target": 100, "images": images}
    return {**own, "loss": loss, "terms": {"scene": 1.5}}


def test_progress_rate_and_eta_come_from_the_newest_steps(tmp_path: Path) -> None:
    write(tmp_path, "0001.00-rank0000.jsonl", [step(10, 0.0, 320), step(20, 5.0, 640), step(30, 10.0, 960)])

    summary = summarise(tmp_path, RUNNING)

    assert (summary.done, summary.target, summary.loss) == (30, 100, 3.5)
    assert summary.rate == pytest.approx(64.0)
    assert summary.eta_s == pytest.approx(35.0)


def test_the_time_between_two_attempts_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, "0001.00-rank0000.jsonl", [step(10, 0.0, 320), step(20, 5.0, 640)])
    write(tmp_path, "0002.00-rank0000.jsonl", [step(21, 5000.0, 672), step(31, 5005.0, 992)])

    assert summarise(tmp_path, RUNNING).rate == pytest.approx(64.0)


def test_a_rollback_is_told_and_does_not_spoil_the_rate(tmp_path: Path) -> None:
    rollback = {"kind": "rollback", "time": 6.0, "data_step": 20, "target": 10, "reason": "nonfinite"}
    write(
        tmp_path,
        "0001.00-rank0000.jsonl",
        [
            step(10, 0.0, 320),
            step(20, 5.0, 640),
            {**rollback, "where": "loss"},
            step(11, 10.0, 672),
            step(21, 15.0, 992),
        ],
    )

    summary = summarise(tmp_path, RUNNING)

    assert summary.problem == "rolled back to data step 10: nonfinite in loss"
    assert summary.eta_s is not None
    assert summary.eta_s == pytest.approx(79 / 2)


def test_a_checkpoint_that_could_not_be_written_is_told(tmp_path: Path) -> None:
    saved = {"kind": "checkpoint", "time": 1.0, "data_step": 10, "outcome": "success"}
    write(tmp_path, "0001.00-rank0000.jsonl", [step(10, 0.0, 320), saved])
    assert summarise(tmp_path, RUNNING).problem == ""

    lost = {"kind": "checkpoint", "time": 2.0, "data_step": 20, "outcome": "failure", "what": "no space"}
    write(tmp_path, "0001.00-rank0000.jsonl", [step(10, 0.0, 320), lost, {**saved, "time": 3.0}])

    assert summarise(tmp_path, RUNNING).problem == (
        "checkpoint of data step 20 could not be written: no space"
    )


def test_a_new_round_is_told_with_its_cause_and_the_rank_to_blame(tmp_path: Path) -> None:
    restart = {
        "kind": "restart",
        "time": 1.0,
        "cause": "hang",
        "message": "rank 1 was silent; Timed\n  where",
    }
    write(tmp_path, "0001.00-agent0.jsonl", [restart])
    assert summarise(tmp_path, RUNNING).problem == "new round of workers: hang; rank 1 was silent; Timed"

    write(tmp_path, "0001.00-agent0.jsonl", [{**restart, "cause": "node_failure", "message": ""}])
    assert summarise(tmp_path, RUNNING).problem == "new round of workers: node_failure"


def test_why_a_run_failed_is_told_before_what_it_survived(tmp_path: Path) -> None:
    lost = {"kind": "image_failed", "time": 2.0, "path": "a.jpg", "reason": "missing"}
    write(tmp_path, "0001.00-rank0000.jsonl", [lost])
    failed = RunState(State.failed, "train", "refused", 1, "no photograph is left\n  fix:   restore them")

    assert summarise(tmp_path, failed).problem == "no photograph is left"
    assert summarise(tmp_path, RUNNING).problem == "unusable image a.jpg: missing"


def test_samples_of_lost_photographs_are_counted(tmp_path: Path) -> None:
    counts = {"images": 320, "substituted_missing": 7, "substituted_corrupt": 0}
    write(tmp_path, "0001.00-rank0000.jsonl", [{**step(10, 0.0, 320), "counts": counts}])

    assert summarise(tmp_path, RUNNING).counts == counts
    assert summarise(tmp_path, RUNNING).to_json()["counts"] == counts


def test_non_finite_losses_are_shown_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, "0001.00-rank0000.jsonl", [step(1, 0.0, 32, "NaN")])

    assert str(summarise(tmp_path, RUNNING).loss) == "nan"


def test_boxes_are_counted_over_shards(tmp_path: Path) -> None:
    def progress(shard: int, done: int, at: float) -> dict[str, Any]:
        return {"kind": "proposals", "time": at, "shard": shard, "images_done": done, "images": 8, "boxes": 9}

    write(
        tmp_path,
        "0001.00-shards.jsonl",
        [
            {"kind": "run", "time": 0.0, "state": "proposals", "num_images": 24},
            {"kind": "shard", "time": 0.0, "shard": 0, "state": "running"},
            progress(0, 4, 1.0),
            progress(0, 8, 2.0),
            {"kind": "shard", "time": 2.0, "shard": 0, "state": "done"},
            {"kind": "shard", "time": 2.0, "shard": 1, "state": "running"},
            progress(1, 4, 3.0),
        ],
    )

    write_json(tmp_path / "images.json", {"shards": [0, 8, 16, 24]})
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shard-00000.json").touch()

    summary = summarise(tmp_path, RunState(State.running, "shards", attempt=1))

    assert (summary.done, summary.target, summary.shards_done, summary.num_shards) == (12, 24, 1, 3)
    assert summary.rate == pytest.approx(4.0)
    assert summary.eta_s == pytest.approx(3.0)


def test_a_run_that_is_over_has_no_rate_and_no_eta(tmp_path: Path) -> None:
    write(tmp_path, "0001.00-rank0000.jsonl", [step(10, 0.0, 320), step(20, 5.0, 640)])

    summary = summarise(tmp_path, RunState(State.failed, "train", "crash", 1))

    assert (summary.done, summary.rate, summary.eta_s) == (20, None, None)


def test_a_run_without_a_journal_is_no_error(tmp_path: Path) -> None:
    summary = summarise(tmp_path, RunState(State.queued, "prepare"))

    assert summary == Summary(tmp_path.name, RunState(State.queued, "prepare"))
    assert summary.to_json()["state"] == "queued"


def test_only_the_end_of_a_long_journal_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [step(number, number * 0.5, number * 32) for number in range(20_000)]
    write(tmp_path, "0001.00-rank0000.jsonl", records)
    size = (tmp_path / "journal" / "0001.00-rank0000.jsonl").stat().st_size
    assert size > 50 * 65_536

    monkeypatch.setattr("monitoring.journal.JournalFile.next_block", None)

    assert summarise(tmp_path, RUNNING).done == 19_999


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the journal files that were opened."""
    names: list[str] = []
    tail_records = module.tail_records

    def tail(path: Path) -> list[Record]:
        names.append(path.name)
        return tail_records(path)

    monkeypatch.setattr(module, "tail_records", tail)
    return names


@pytest.mark.parametrize("num_attempts", [2, 60])
def test_a_look_reads_what_has_grown_however_many_attempts_there_were(
    tmp_path: Path, read: list[str], num_attempts: int
) -> None:
    run_dir, num_ranks = tmp_path / "watched", 8

    def steps(attempt: int, count: int) -> list[dict[str, Any]]:
        begin = 10 * attempt
        return [step(begin + each, 100.0 * attempt + each, 32 * (begin + each)) for each in range(count)]

    for attempt in range(num_attempts):
        for rank in range(num_ranks):
            skip = {"kind": "skip", "time": 100.0 * attempt + rank, "data_step": attempt, "where": "loss"}
            write(run_dir, f"{attempt:04d}.00-rank{rank:04d}.jsonl", [skip, *steps(attempt, 3)])
    newest = [f"{num_attempts - 1:04d}.00-rank{rank:04d}.jsonl" for rank in range(num_ranks)]

    first = summarise(run_dir, RUNNING)
    assert len(read) == num_attempts * num_ranks
    read.clear()

    assert summarise(run_dir, RUNNING) == first
    assert read == []

    for name in newest:
        write(run_dir, name, steps(num_attempts - 1, 5))
    grown = summarise(run_dir, RUNNING)

    assert read == newest
    assert grown.done == 10 * (num_attempts - 1) + 4
    # The newest problem was in the files that were written anew; what is left is that of the attempt before.
    assert grown.problem == f"skipped data step {num_attempts - 2}: ? in loss"
    shutil.copytree(run_dir, tmp_path / "unknown")
    unknown = summarise(tmp_path / "unknown", RUNNING)
    assert unknown.to_json() | {"run": "watched"} == grown.to_json()


def test_files_that_are_looked_at_no_more_are_forgotten(tmp_path: Path, read: list[str]) -> None:
    for attempt in (1, 2):
        write(tmp_path, f"{attempt:04d}.00-rank0000.jsonl", [step(attempt, float(attempt), 32)])
    summarise(tmp_path, RUNNING)
    kept = tmp_path / "journal" / "0002.00-rank0000.jsonl"
    away = kept.rename(tmp_path / "away")

    assert summarise(tmp_path, RUNNING).done == 1
    away.rename(kept)
    read.clear()

    assert summarise(tmp_path, RUNNING).done == 2
    assert read == [kept.name]
