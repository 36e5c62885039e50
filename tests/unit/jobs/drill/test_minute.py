"""The share of the time that goes into steps that count, on a run written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.drill.minute import useful_share
from univip.engine.sample_log import FILE_NAME, Marks, SampleLog


def _line(round_number: int, time: float, data_step: int, seconds: float) -> str:
    record = {"v": 1, "kind": "step", "time": time, "attempt": 1, "round": round_number, "rank": 0}
    return json.dumps({**record, "data_step": data_step, "seconds": seconds, "loss": 1.0}) + "\n"


def _write(run_dir: Path, logged: list[int]) -> None:
    """Steps of one second: six, death, four seconds of nothing, back by two, and six more."""
    first = [_line(0, 100.0 + done, done, float(done)) for done in range(1, 7)]
    second = [_line(1, 106.0 + 4 + done, 4 + done, 4.0 + 2 + done) for done in range(1, 7)]
    folder = run_dir / "journal"
    folder.mkdir()
    (folder / "0001.00-rank0000.jsonl").write_text("".join(first), encoding="utf-8")
    (folder / "0001.01-rank0000.jsonl").write_text("".join(second), encoding="utf-8")
    log = SampleLog(run_dir / FILE_NAME)
    for data_step in logged:
        log.add(data_step, Marks(1, 1))
    log.flush()


def test_what_is_done_again_and_the_time_between_do_not_count(tmp_path: Path) -> None:
    _write(tmp_path, list(range(10)))

    useful, apart = useful_share(tmp_path)

    # From the first record, at 101 s, to the last, at 116 s: steps 2, 3, 4 and, in the second round, 5 to 10.
    assert useful == pytest.approx(9 / 15)
    # Ten of twelve steps are in the log, of eleven seconds in the loop.
    assert apart == pytest.approx(abs(9 / 15 - 10 / 12 * 11 / 15))


def test_a_sample_log_that_lacks_steps_is_seen(tmp_path: Path) -> None:
    _write(tmp_path, list(range(5)))

    assert useful_share(tmp_path)[1] > 0.2
