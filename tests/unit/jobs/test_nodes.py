"""Agents of two nodes agree through one store; here each is a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs import nodes
from jobs.agent import ENDED
from jobs.nodes import (
    First,
    FirstNodeLostError,
    FirstNodeSilentError,
    Follower,
    Report,
    RoundOverError,
    TooFewNodesError,
)
from jobs.outcomes import Cause, ExitCode, Outcome
from jobs.slurm import Execution
from jobs.stopping import OutOfTimeError

DONE = Outcome(ExitCode.DONE)
HERE = Execution("17", 0, 0, 2)
THERE = Execution("17", 0, 1, 2)


endpoint = nodes._endpoint


@pytest.fixture(autouse=True)
def _fast_and_on_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(nodes, "_endpoint", lambda here: ("localhost", port))
    for name, value in {"_BEAT_S": 0.05, "_DEAD_AFTER_S": 1.0, "_LAST_CALL_S": 0.2, "_POLL_S": 0.01}.items():
        monkeypatch.setattr(nodes, name, value)
    monkeypatch.setattr(nodes, "_LOOK_S", 0.0)


@pytest.fixture
def first() -> First:
    return First(HERE, 3, in_order=ENDED)


@pytest.fixture
def follower(first: First) -> Iterator[Follower]:
    found = Follower(THERE)
    yield found
    found.close()


def at_the_same_time(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in a thread; what it returns is its result, when called."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(20)
        return results[0]

    return result


def test_two_nodes_run_rounds_and_end_together(first: First, follower: Follower) -> None:
    assert follower.attempt == 3
    for number in range(2):
        joined = at_the_same_time(follower.wait_for_round)
        assert first.gather(number, 2) == [0, 1]
        assert joined() == (number, [0, 1])
        follower.look(number, [0, 1])
        first.look(number, [0, 1])
        follower.report(number, Report(2, ENDED, [DONE, DONE], silent=[3]))
        reports, lost = first.collect(number, [0, 1], Report(0, ENDED, [DONE]))
        assert reports == [Report(0, ENDED, [DONE]), Report(2, ENDED, [DONE, DONE], silent=[3])]
        assert lost == []
        if number == 0:
            first.again(number)
            assert follower.verdict(number) is None

    told = at_the_same_time(lambda: follower.verdict(1))
    outcome = Outcome(ExitCode.REQUEUE, Cause.STOPPED, "asked to stop")
    first.end(1, outcome)
    assert told() == outcome


def test_a_failure_on_one_node_ends_the_round_on_the_other(first: First, follower: Follower) -> None:
    joined = at_the_same_time(follower.wait_for_round)
    first.gather(0, 1)
    joined()

    follower.report(0, Report(2, -9))
    with pytest.raises(RoundOverError):
        first.look(0, [0, 1])

    joined = at_the_same_time(follower.wait_for_round)
    first.gather(1, 1)
    joined()
    collected = at_the_same_time(lambda: first.collect(1, [0, 1], Report(0, 1)))
    time.sleep(0.3)
    with pytest.raises(RoundOverError):
        follower.look(1, [0, 1])
    follower.report(1, Report(-1, 0))
    assert collected() == ([Report(0, 1), Report(-1, 0)], [])


def test_a_node_that_falls_silent_is_left_out(first: First, follower: Follower) -> None:
    joined = at_the_same_time(follower.wait_for_round)
    first.gather(0, 1)
    joined()
    follower.close()

    assert first.collect(0, [0, 1], Report(0, 1)) == ([Report(0, 1)], [1])
    assert first.gather(1, 1) == [0]


def test_an_agent_that_was_started_again_is_no_part_of_the_round_it_died_in(
    first: First, follower: Follower
) -> None:
    joined = at_the_same_time(follower.wait_for_round)
    first.gather(0, 1)
    joined()
    follower.close()

    again = Follower(THERE)
    joined = at_the_same_time(again.wait_for_round)
    assert first.collect(0, [0, 1], Report(0, 1)) == ([Report(0, 1)], [1])
    assert first.gather(1, 1) == [0, 1]
    assert joined() == (1, [0, 1])
    again.close()


def test_a_node_that_comes_late_makes_the_workers_stop_for_the_next_round(
    first: First, follower: Follower, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "JOIN_TIMEOUT_S", 0.1)
    first.stop_round = tmp_path / "stop"
    assert first.gather(0, 1) == [0]
    first.look(0, [0])
    assert not first.stop_round.exists()

    late = Follower(THERE)
    joined = at_the_same_time(late.wait_for_round)
    while not first.stop_round.exists():
        first.look(0, [0])

    assert first.gather(1, 1) == [0, 1]
    assert joined() == (1, [0, 1])
    late.close()


def test_the_workers_of_a_round_meet_at_the_agents_and_see_nothing_of_an_earlier_round(
    first: First, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.address == follower.address
    monkeypatch.setenv("MASTER_ADDR", first.address[0])
    monkeypatch.setenv("MASTER_PORT", str(first.address[1]))
    one, other = nodes.store_of_workers(3), nodes.store_of_workers(3)

    one.set("address", "of a worker")

    assert other.get("address") == b"of a worker"
    assert not nodes.store_of_workers(4).check(["address"])


def test_whatever_is_waited_for_somebody_may_end_it() -> None:
    def end() -> None:
        raise InterruptedError

    first = First(HERE, 3, in_order=ENDED, while_waiting=end)
    with pytest.raises(InterruptedError):
        first.gather(0, 2)
    follower = Follower(THERE, while_waiting=end)
    for wait in (follower.wait_for_round, lambda: follower.verdict(0)):
        with pytest.raises(InterruptedError):
            wait()
    with pytest.raises(InterruptedError):
        first.collect(0, [0, 1], Report(0, 1))
    with pytest.raises(InterruptedError):
        first.rendezvous(0, [0, 1]).num_nodes_waiting()
    follower.leave()
    first.end(0, DONE)  # does not wait for the verdict to be read
    follower.close()


def test_too_few_nodes_are_told(first: First, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "JOIN_TIMEOUT_S", 0.1)

    with pytest.raises(TooFewNodesError, match="1 nodes are left, and 2 are needed"):
        first.gather(0, 2)


def test_nodes_that_slurm_has_taken_away_are_not_waited_for(
    first: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(nodes, "_ASK_SLURM_S", 0.05)
    monkeypatch.setattr(nodes, "num_nodes", lambda here: asked.append(here) or (2 if len(asked) < 3 else 1))

    with pytest.raises(TooFewNodesError, match="1 nodes are left, and 2 are needed"):
        first.gather(1, 2)  # without that for two minutes

    assert asked == [HERE] * 3


def test_a_first_node_that_slurm_has_taken_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    has = iter([True, True, False])
    monkeypatch.setattr(nodes, "_ASK_SLURM_S", 0.05)
    monkeypatch.setattr(nodes, "has_node", lambda here, host: next(has))

    with pytest.raises(FirstNodeLostError, match="SLURM has taken localhost from the job"):
        Follower(THERE)  # nothing listens there

    assert list(has) == []


def test_a_first_node_that_has_left_word_of_its_end_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = iter([False, False, True])
    monkeypatch.setattr(nodes, "_ASK_SLURM_S", 0.05)
    monkeypatch.setattr(nodes, "has_node", lambda here, host: True)

    with pytest.raises(FirstNodeSilentError, match="localhost has ended"):
        Follower(THERE, has_ended=lambda: next(ends))

    assert list(ends) == []


def test_who_waits_for_the_first_node_can_be_stopped() -> None:
    def stop() -> None:
        raise OutOfTimeError("asked to stop")

    with pytest.raises(OutOfTimeError):
        Follower(THERE, while_waiting=stop)


def test_a_node_that_failed_its_preflight_is_not_waited_for_and_told_once() -> None:
    told: list[tuple[int, str]] = []
    first = First(HERE, 3, in_order=ENDED, on_unfit=lambda node, what: told.append((node, what)))
    follower = Follower(THERE)
    stays_out = at_the_same_time(lambda: follower.stay_out("node2: cuda:1: wrong"))

    for number in range(2):
        assert first.gather(number, 1) == [0]
        first.look(number, [0])
        first.again(number)
    with pytest.raises(TooFewNodesError, match="2 are needed; node 1 failed its pre-flight: node2: cuda:1"):
        first.gather(2, 2)

    assert told == [(1, "node2: cuda:1: wrong")]
    outcome = Outcome(ExitCode.REQUEUE, Cause.NODE_FAILURE, "too few")
    first.end(2, outcome)
    assert stays_out() == outcome
    follower.close()


def test_what_is_left_of_an_execution_is_not_asked_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after a requeue, nor by jobs of the same user on the same node."""
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[08-09]")
    jobs = [Execution(str(number), restart, 0, 2) for number in range(990, 1000) for restart in range(7)]
    late = [Execution(str(number), 0, 0, 2) for number in range(0, 20_000, 7)]

    hosts, ports = zip(*map(endpoint, jobs), strict=True)

    assert set(hosts) == {"gpu08"}
    assert len(set(ports)) == len(jobs)
    assert all(1024 < port < 32768 for port in (*ports, *(endpoint(job)[1] for job in late)))  # not ephemeral
    assert endpoint(Execution("17", 0, 0, 1)) == ("localhost", 0)
