"""Which nodes are left out when a run is queued again, and how an attempt ends that has too few."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs import unfit
from jobs.attempts import Attempt
from jobs.outcomes import Cause, ExitCode
from univip.observe import NullObserver

DAY_S = 86_400.0


def attempt(run_dir: Path, number: int, *, job: str = "7", host: str = "node1", cause: str = "") -> Attempt:
    mine = Attempt(number, "train", host, 1, 1, job, started=1.0)
    if cause:
        mine.ended, mine.cause = time.time(), cause
    mine.directory(run_dir).mkdir(parents=True)
    mine.save(run_dir)
    return mine


def fail(run_dir: Path, mine: Attempt, host: str) -> None:
    unfit.failed_preflight(run_dir, mine, host, "cuda:1: wrong", NullObserver())


def test_a_node_that_failed_its_preflight_is_left_out_at_once_and_for_a_day(tmp_path: Path) -> None:
    now = time.time()
    assert unfit.unfit_hosts(tmp_path, now=now) == []

    fail(tmp_path, attempt(tmp_path, 1), "node3")

    assert unfit.unfit_hosts(tmp_path, now=now) == ["node3"]
    assert unfit.unfit_hosts(tmp_path, now=now + DAY_S + 60) == []
    [record] = unfit.records(tmp_path)
    assert (record["host"], record["what"], record["attempt"]) == ("node3", "cuda:1: wrong", 1)


def test_a_node_that_was_lost_is_left_out_from_the_second_attempt_on(tmp_path: Path) -> None:
    first, second = attempt(tmp_path, 1), attempt(tmp_path, 2)
    for _ in range(3):  # its agent was killed again and again, and started again in the same attempt
        unfit.lost(tmp_path, first, "node2")
    unfit.lost(tmp_path, second, "node4")
    assert unfit.unfit_hosts(tmp_path, now=time.time()) == []

    unfit.lost(tmp_path, second, "node2")

    assert unfit.unfit_hosts(tmp_path, now=time.time()) == ["node2"]


def test_the_node_that_led_counts_although_nobody_was_left_to_tell(tmp_path: Path) -> None:
    attempt(tmp_path, 1, host="node1", cause=Cause.NODE_FAILURE)
    attempt(tmp_path, 2, host="node2", cause=Cause.KILLED)
    assert unfit.unfit_hosts(tmp_path, now=time.time()) == []

    third = attempt(tmp_path, 3, host="node1")

    assert unfit.unfit_hosts(tmp_path, now=time.time()) == []
    assert unfit.unfit_hosts(tmp_path, now=time.time(), just_lost=third) == ["node1"]
    third.ended, third.cause = time.time(), Cause.NODE_FAILURE
    third.save(tmp_path)
    assert unfit.unfit_hosts(tmp_path, now=time.time()) == ["node1"]


def test_a_node_has_the_name_that_slurm_knows(tmp_path: Path) -> None:
    for number in (1, 2):
        mine = attempt(tmp_path, number, host="gpu07.cluster.example.org", cause=Cause.NODE_FAILURE)
        mine.slurm_node = "gpu07"
        mine.save(tmp_path)

    assert unfit.unfit_hosts(tmp_path, now=time.time()) == ["gpu07"]


def test_a_node_that_told_of_too_few_others_is_not_to_blame(tmp_path: Path) -> None:
    for number in (1, 2):
        mine = attempt(tmp_path, number, cause=Cause.NODE_FAILURE)
        mine.exit_code = ExitCode.REQUEUE
        mine.save(tmp_path)

    assert unfit.unfit_hosts(tmp_path, now=time.time()) == []


@pytest.mark.parametrize(
    ("job", "failures", "expected"),
    [
        ("7", 0, ExitCode.REQUEUE),  # lost nodes
        ("7", 1, ExitCode.REQUEUE),
        ("7", 2, ExitCode.CRASH),  # SLURM gives the same node again
        ("", 1, ExitCode.CRASH),  # there is no other node
    ],
)
def test_a_job_goes_back_into_the_queue_unless_that_brings_the_same_node_again(
    tmp_path: Path, job: str, failures: int, expected: ExitCode
) -> None:
    mine = attempt(tmp_path, 1, job=job)
    fail(tmp_path, attempt(tmp_path, 2, job="6"), "node3")
    for number in range(failures):
        mine = attempt(tmp_path, 3 + number, job=job)
        fail(tmp_path, mine, "node3")

    outcome = unfit.outcome(tmp_path, mine, "in words")

    assert (outcome.exit_code, outcome.cause, outcome.message) == (expected, Cause.NODE_FAILURE, "in words")
