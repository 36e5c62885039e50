"""The fence: which rank may still write checkpoints."""

from __future__ import annotations

from pathlib import Path

from jobs import worker
from jobs.attempts import Attempt, attempt


def make_round(run_dir: Path, mine: Attempt, number: int) -> None:
    mine.round_directory(run_dir, number).mkdir()


def test_a_newer_round_takes_the_run_over(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as mine:
        make_round(tmp_path, mine, 0)
        assert worker._is_newest(tmp_path, mine, 0)

        make_round(tmp_path, mine, 1)

        assert not worker._is_newest(tmp_path, mine, 0)
        assert worker._is_newest(tmp_path, mine, 1)


def test_a_newer_attempt_takes_the_run_over_with_its_first_round(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as old:
        make_round(tmp_path, old, 0)
    with attempt(tmp_path, "train") as new:
        # It may have been refused, or killed before it wrote that it was: without a round it owns nothing.
        assert worker._is_newest(tmp_path, old, 0)

        make_round(tmp_path, new, 0)

        assert not worker._is_newest(tmp_path, old, 0)
        assert worker._is_newest(tmp_path, new, 0)
