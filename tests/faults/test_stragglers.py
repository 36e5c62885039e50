"""A rank that is slow step after step is named, though every rank's step takes equally long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Job, Runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("slow", [0, 1])
def test_the_slow_one_of_two_ranks_is_named_within_twenty_steps(
    runs: Runs, start: Callable[..., Job], slow: int
) -> None:
    run = runs.new("straggler", workers=2, overrides=["train.max_steps=24", "monitoring.every_steps=4"])

    job = start(run, plant=f"slow:{slow}@3")

    assert job.wait() == 0, job.stderr
    [named] = run.records("straggler")
    assert named["slowest"] == slow
    assert named["data_step"] <= 3 + 20
    assert named["ratio"] > 1.4
    first, *_, last = run.records("step")
    assert (first["slowest_rank"], first["straggler_ratio"]) == (None, None)
    assert last["slowest_rank"] == slow
    assert last["straggler_ratio"] > 1.4
