"""`univip logs`: the journal in words, beside what processes printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.attempts import Attempt
from jobs.outcomes import write_json
from launcher import journal_lines
from launcher.cli.main import run
from launcher.journal_lines import JournalLines
from monitoring.lines import encode

BEGIN = 1_700_000_000.0


def write(run_dir: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = run_dir / "journal" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt, rank = int(name[:4]), int(name[12:16]) if "rank" in name else None
    envelope = {
        "v": 1,
        "seq": 0,
        "attempt": attempt,
        "round": 0,
        "rank": rank,
        "step": None,
        "data_step": None,
    }
    with path.open("ab") as file:
        file.writelines(encode({**envelope, **record}) for record in records)
    return path


def step(number: int, after_s: float, target: int = 10_000) -> dict[str, Any]:
    own = {"kind": "step", "time": BEGIN + after_s, "data_step": number, "target": target}
    return {**own, "images": 32 * number, "loss": 3.5, "terms": {"scene": 1.5}}


def event(kind: str, after_s: float, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "time": BEGIN + after_s, **fields}


def add_attempt(run_dir: Path, number: int, ranks: int = 0, printed: str = "") -> None:
    attempt = Attempt(number, "train", "node1", 1, 1, "", BEGIN, ended=BEGIN + 100, exit_code=1)
    folder = attempt.round_directory(run_dir, 0)
    folder.mkdir(parents=True)
    attempt.save(run_dir)
    for rank in range(ranks):
        (folder / f"rank-{rank}.log").write_text(printed.format(rank))
        os.utime(folder / f"rank-{rank}.log", (BEGIN, BEGIN + 50 + rank))


def test_every_process_is_shown_and_can_be_narrowed(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "train.log").write_text("one\ntwo\nthree\n")
    add_attempt(run_dir, 1, 2, "I am {}\n")

    run(["logs", "@last", "-n", "2"])
    everything = capsys.readouterr().out
    run(["logs", "@last", "--rank", "1"])
    narrowed = capsys.readouterr().out
    add_attempt(run_dir, 2, 1, "I am the second\n")
    run(["logs", "@last", "--attempt", "2"])

    assert capsys.readouterr().out == "==> univip-1/attempts/0002/round-00/rank-0.log <==\nI am the second\n"
    assert "==> univip-1/logs/train.log <==\ntwo\nthree\n" in everything
    assert "I am 0" in everything
    assert narrowed == "==> univip-1/attempts/0001/round-00/rank-1.log <==\nI am 1\n"


def test_progress_and_events_stand_between_what_was_printed(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_attempt(run_dir, 1, 1, "a warning\n")
    skip = event("skip", 45, data_step=3, reason="nonfinite", where="loss")
    rollback = event("rollback", 55, data_step=4, target=2, reason="spike", where="gradient")
    ended = event("run", 100, state="failed")
    write(run_dir, "0001.00-agent0.jsonl", [event("attempt", 0, host="node1", stage="train"), ended])
    write(run_dir, "0001.00-rank0000.jsonl", [step(1, 40), skip, rollback])

    assert run(["logs", "@last"]) == 0

    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "==> univip-1/journal <=="
    clock = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ")
    assert [clock.sub("", line) for line in lines] == [
        "attempt 1 began: train on node1",
        "train      ············ 1/10000 steps  loss 3.500 (scene 1.500)",
        "! skipped data step 3: nonfinite in loss",
        "==> univip-1/attempts/0001/round-00/rank-0.log <==",
        "a warning",
        "==> univip-1/journal <==",
        "! rolled back to data step 2: spike in gradient",
        "attempt 1 ended: failed",
    ]
    assert [bool(clock.match(line)) for line in lines] == [True] * 3 + [False] * 3 + [True] * 2


def test_progress_is_told_once_in_half_a_minute_and_at_the_end(run_dir: Path) -> None:
    write(run_dir, "0001.00-rank0000.jsonl", [step(number, number, target=75) for number in range(1, 76)])

    told = [line for _, line in JournalLines(run_dir).last(200)]

    assert [re.findall(r"(\d+)/75", line)[0] for line in told] == ["1", "31", "61", "75"]
    assert ["32.0 images/s" in line for line in told] == [False, True, True, True]


def test_of_another_rank_only_problems_are_told_unless_it_is_asked_for(run_dir: Path) -> None:
    lost = event("image_failed", 2, path="a.jpg", reason="missing")
    round_ = event("round", 1, world_size=2, host="node1")
    for rank in range(2):
        write(run_dir, f"0001.00-rank{rank:04d}.jsonl", [round_, lost])

    assert [line for _, line in JournalLines(run_dir).last(9)] == [
        "round 0 of attempt 1 began: rank 0 of 2 on node1",
        "! unusable image a.jpg: missing",
        "! unusable image a.jpg: missing",
    ]
    assert [line for _, line in JournalLines(run_dir, rank=1).last(9)] == [
        "round 0 of attempt 1 began: rank 1 of 2 on node1",
        "! unusable image a.jpg: missing",
    ]


def test_of_a_run_of_weeks_only_the_ends_are_read(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_lines, "_END_BYTES", 20_000)
    steps = [step(number, 30.0 * number) for number in range(3000)]
    for attempt in range(1, 5):
        path = write(run_dir, f"{attempt:04d}.00-rank0000.jsonl", steps)
    assert path.stat().st_size > 500_000
    lines = JournalLines(run_dir)

    told = lines.last(50)

    assert len(told) == 50
    assert "2999/10000" in told[-1][1]
    files = [each._file for each in lines._open.values()]
    assert [file.bytes_read for file in files] == [0, 0, 0, 20_000]

    write(run_dir, "0001.00-rank0000.jsonl", [step(3001, 1e6)])
    assert ["3001/10000" in line for _, line in lines.new()] == [True]
    assert files[0].bytes_read < 1000


def test_what_submitit_says_of_itself_is_left_out(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "submitit").mkdir()
    printed = run_dir / "submitit" / "7_0_log.out"
    printed.write_text("submitit INFO (2026-01-01 00:00:00,000) - Loading pickle: /x\n")

    run(["logs", "@last"])
    said = capsys.readouterr()
    assert said.out == ""
    assert "nothing was recorded or printed yet" in said.err

    printed.write_text(f"{printed.read_text()}submitit ERROR (now) - it fails\nwhy")
    run(["logs", "@last"])
    assert capsys.readouterr().out.endswith("7_0_log.out <==\nsubmitit ERROR (now) - it fails\nwhy")


def test_it_follows_until_the_run_is_over_and_says_how_it_ended(
    run_dir: Path, own: Callable[..., None]
) -> None:
    owner = subprocess.Popen(["sleep", "60"])
    own(run_dir, owner.pid)
    (run_dir / "logs").mkdir()
    log = run_dir / "logs" / "train.log"
    log.write_text("before\n")
    command = [sys.executable, "-m", "launcher.cli.main", "logs", "@last", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        said = [follower.stdout.readline() for _ in range(2)]

        with log.open("a") as file:
            file.write("after\n")
        said.append(follower.stdout.readline())
        write(run_dir, "0001.00-rank0000.jsonl", [step(1, 0)])
        said += [follower.stdout.readline() for _ in range(2)]
        owner.kill()
        owner.wait()
        said += follower.stdout

        assert follower.wait(20) == 0
    assert said[1:4] == ["before\n", "after\n", "==> univip-1/journal <==\n"]
    assert "1/10000 steps  loss 3.500" in said[4]
    assert len(said) == 6
    assert said[5].endswith("stopped in prepare: without a word\n")


def test_how_a_finished_run_ended_is_told_with_the_time_of_its_end(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_attempt(run_dir, 1)
    supervisor = {"pid": 1, "host": "x", "start_ticks": 1, "stages": [], "outcome": "failed"}
    write_json(run_dir / "supervisor.json", {**supervisor, "request": _request(run_dir)})

    assert run(["logs", "@last", "-f"]) == 0

    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(BEGIN + 100))
    assert capsys.readouterr().out.splitlines() == [f"{at}  failed in prepare: without a word"]


def _request(run_dir: Path) -> str:
    from jobs.requests import Request

    request = Request.load(run_dir)
    assert request is not None
    return request.id


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rank", "99"], "--rank must be one that there is, 0 to 3, but is 99."),
        (["--rank", "3", "--attempt", "2"], "--rank must be one that there is, 0, 1, but is 3."),
        (["--attempt", "9"], "--attempt must be one that there is, 1, 2, but is 9."),
        (["--attempt", "9", "-f"], "--attempt must be one that there is, 1, 2, but is 9."),
    ],
    ids=str,
)
def test_a_rank_or_attempt_that_there_is_not_is_refused_with_those_that_there_are(
    run_dir: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_attempt(run_dir, 1, ranks=3)
    write(run_dir, "0001.00-rank0003.jsonl", [event("round", 0)])
    add_attempt(run_dir, 2, ranks=2)

    assert run(["logs", "@last", *options]) == 2

    assert says in capsys.readouterr().err
