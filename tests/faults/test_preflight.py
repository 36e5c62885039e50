"""A node that computes wrongly trains nothing; once it computes rightly, the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from jobs.attempts import read_attempts

if TYPE_CHECKING:
    from conftest import Job, Runs

pytestmark = pytest.mark.slow


def test_a_wrong_product_ends_the_attempt_before_anything_trains(
    runs: Runs, start: Callable[..., Job]
) -> None:
    run = runs.new("unfit", workers=2)

    assert start(run, plant="matmul:0@1").wait() == 1
    assert run.records("step") == run.records("round") == []
    [record] = run.records("preflight")
    [attempt] = read_attempts(run.directory)
    assert attempt.cause == "node_failure"
    assert f"{attempt.host}, which leads the others, failed its pre-flight: cpu: 1 of" in attempt.message
    assert [each["host"] for each in run.ledger("unfit_node")] == [record["host"]] == [attempt.host]

    assert start(run, plant="matmul:0@1").wait() == 0
    assert run.digest() == runs.undisturbed(2).digest()
    assert [record["world_size"] for record in run.records("round")] == [2, 2]
