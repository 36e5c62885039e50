"""What the agent makes of the outcome files of a round."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs.agent import ENDED, _judge, follow
from jobs.config import Config
from jobs.nodes import Report
from jobs.outcomes import Cause, ExitCode, Outcome
from jobs.slurm import Execution
from monitoring.journal import read
from univip.config import DataConfig

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


def test_the_agent_of_another_node_reads_its_own_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver(ModuleType):
        NVMLError = NVMLError_NotSupported = RuntimeError
        nvmlInit = staticmethod(lambda: None)
        nvmlDeviceGetCount = staticmethod(lambda: 1)
        nvmlDeviceGetHandleByIndex = staticmethod(lambda index: index)
        nvmlDeviceGetTemperature = staticmethod(lambda gpu, sensor: 61)

        def __getattr__(self, name: str) -> Any:
            def refuse(*arguments: object) -> None:
                raise self.NVMLError("Not Supported")

            return refuse if name.startswith(("nvmlDevice", "nvmlEventSet")) else 0

    class Ended:
        """The rounds of another node, which are over."""

        attempt = 7

        def __init__(self, here: Execution) -> None:
            pass

        def wait_for_round(self) -> Outcome:
            return DONE

        def close(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "pynvml", Driver("pynvml"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("jobs.nodes.Follower", Ended)
    monkeypatch.setattr("jobs.agent._prepare", lambda directory: None)
    monkeypatch.setattr("jobs.agent._stop_on_signals", lambda directory: None)
    monkeypatch.setattr("jobs.slurm.Execution.here", lambda: Execution(job_id="17", node=3, num_nodes=4))

    assert follow(Config(data=DataConfig(root="/x")), tmp_path) == DONE
    [record] = read(tmp_path)
    assert (record["kind"], record["node"], record["attempt"]) == ("gpu", 3, 7)
    assert record["temperature_celsius"] == {"0": 61}
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["0007.00-agent3.jsonl"]
