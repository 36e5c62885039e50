"""What the agent makes of the outcome files of a round."""

from __future__ import annotations

import signal

import pytest

from jobs.agent import ENDED, _judge
from jobs.nodes import Report
from jobs.outcomes import Cause, ExitCode, Outcome

DONE = Outcome(ExitCode.DONE)
STOPPED = Outcome(ExitCode.REQUEUE, Cause.STOPPED, "asked to stop")
CRASHED = Outcome(ExitCode.CRASH, Cause.OUT_OF_MEMORY, "no memory")
LOST_PEER = Outcome(ExitCode.CRASH, Cause.LOST_PEER, "connection reset")
REFUSED = Outcome(ExitCode.REFUSED, Cause.REFUSED, "three lines")
EXHAUSTED = Outcome(ExitCode.EXHAUSTED, Cause.NONFINITE, "three lines")


@pytest.mark.parametrize(
    ("outcomes", "exit_code", "expected"),
    [
        ([DONE, DONE], ENDED, (ExitCode.DONE, Cause.DONE)),
        ([STOPPED, STOPPED], ENDED, (ExitCode.REQUEUE, Cause.STOPPED)),
        ([REFUSED, LOST_PEER], 1, (ExitCode.REFUSED, Cause.REFUSED)),
        ([LOST_PEER, EXHAUSTED], 76, (ExitCode.EXHAUSTED, Cause.NONFINITE)),
        # Killed: no file; whichever the agent sees first, the peer failed only for want of it.
        ([None, LOST_PEER], -signal.SIGKILL, (ExitCode.CRASH, Cause.KILLED)),
        ([None, LOST_PEER], 1, (ExitCode.CRASH, Cause.KILLED)),
        ([None, DONE], -signal.SIGKILL, (ExitCode.CRASH, Cause.KILLED)),
        ([DONE, CRASHED], ENDED, (ExitCode.CRASH, Cause.OUT_OF_MEMORY)),
        ([LOST_PEER, CRASHED], 1, (ExitCode.CRASH, Cause.OUT_OF_MEMORY)),
        # Ended before it could leave a file, by itself.
        ([None, None], 1, (ExitCode.CRASH, Cause.CRASH)),
        ([DONE, None], 1, (ExitCode.CRASH, Cause.CRASH)),
    ],
)
def test_a_round_is_judged_by_its_most_decided_rank(
    outcomes: list[Outcome | None],
    exit_code: int,
    expected: tuple[ExitCode, Cause],
) -> None:
    judged = _judge([Report(0, exit_code, [each for each in outcomes if each])], [])

    assert (judged.exit_code, judged.cause) == expected
    if CRASHED in outcomes:
        assert "no memory" in judged.message


@pytest.mark.parametrize(
    ("reports", "lost", "expected"),
    [
        ([Report(0, ENDED, [DONE, DONE]), Report(2, ENDED, [DONE, DONE])], [], (ExitCode.DONE, Cause.DONE)),
        ([Report(0, 1, [LOST_PEER, LOST_PEER])], [1], (ExitCode.CRASH, Cause.NODE_FAILURE)),
        ([Report(-1, 0)], [1], (ExitCode.CRASH, Cause.NODE_FAILURE)),  # seen by its silence first
        ([Report(-1, 0), Report(3, 1, [CRASHED])], [], (ExitCode.CRASH, Cause.OUT_OF_MEMORY)),
        ([Report(0, 1, [LOST_PEER]), Report(3, -9)], [], (ExitCode.CRASH, Cause.KILLED)),
        # All was saved before the other node went away.
        ([Report(0, ENDED, [DONE, DONE])], [1], (ExitCode.DONE, Cause.DONE)),
    ],
)
def test_a_round_on_several_nodes_has_one_outcome(
    reports: list[Report], lost: list[int], expected: tuple[ExitCode, Cause]
) -> None:
    judged = _judge(reports, lost)

    assert (judged.exit_code, judged.cause) == expected
