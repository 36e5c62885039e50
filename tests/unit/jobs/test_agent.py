"""What the agent makes of the outcome files of a round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import attempts, unfit
from jobs.agent import ENDED, _judge, _rounds, follow, train
from jobs.config import Config
from jobs.nodes import FirstNodeLostError, FirstNodeSilentError, Report
from jobs.outcomes import Cause, ExitCode, Outcome, write_json
from jobs.slurm import Execution
from jobs.stopping import StopRequest
from monitoring.journal import read
from univip.config import DataConfig
from univip.observe import NullObserver

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


def test_a_rank_that_neither_spoke_nor_answered_is_named_by_a_hang_and_by_nothing_else() -> None:
    timed_out = Outcome(ExitCode.CRASH, Cause.HANG, "RuntimeError: Timed out waiting 4000ms")
    hung = [Report(0, 1, [timed_out]), Report(-1, 0, [], silent=[3])]

    assert _judge(hung, []).message.startswith("rank 3 was silent; rank 0 ended with exit code 1; Runtime")
    assert "silent" not in _judge([Report(1, -9, [LOST_PEER], silent=[1])], []).message


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

        def __init__(self, here: Execution, **callbacks: Callable[[], object]) -> None:
            pass

        def wait_for_round(self) -> Outcome:
            return DONE

        def close(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "pynvml", Driver("pynvml"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("jobs.nodes.Follower", Ended)
    monkeypatch.setattr("jobs.agent._prepare", lambda: None)
    monkeypatch.setattr("jobs.stopping.StopRequest.listen", lambda self, directory: None)
    monkeypatch.setattr("jobs.slurm.Execution.here", lambda: Execution(job_id="17", node=3, num_nodes=4))

    monkeypatch.setattr("jobs.agent._preflight", lambda *where, node: "")

    assert follow(Config(data=DataConfig(root="/x")), tmp_path) == DONE
    [record] = read(tmp_path)
    assert (record["kind"], record["node"], record["attempt"]) == ("gpu", 3, 7)
    assert record["temperature_celsius"] == {"0": 61}
    assert [path.name for path in (tmp_path / "journal").iterdir()] == ["0007.00-agent3.jsonl"]


SILENT, TAKEN = FirstNodeSilentError("node1 has not answered for 120 s"), FirstNodeLostError("is taken")


@pytest.mark.parametrize(
    ("error", "of_first", "node", "expected"),
    [
        (TAKEN, {}, "idle", (ExitCode.REQUEUE, Cause.NODE_FAILURE)),
        (SILENT, {"exit_code": 77, "cause": "refused"}, "idle", (ExitCode.REFUSED, Cause.REFUSED)),
        (SILENT, {"exit_code": 0, "cause": "done"}, "idle", (ExitCode.DONE, Cause.DONE)),
        (SILENT, {"exit_code": 77, "cause": "refused", "slurm_restart": 1}, "idle", (1, Cause.CRASH)),
        (SILENT, {"exit_code": 77, "cause": "refused", "slurm_job_id": "16"}, "idle", (1, Cause.CRASH)),
        (SILENT, {}, "idle", (ExitCode.CRASH, Cause.CRASH)),
        (SILENT, {}, "idle*", (ExitCode.REQUEUE, Cause.NODE_FAILURE)),
    ],
)
def test_without_the_first_node_a_job_goes_round_only_if_that_node_is_lost(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    of_first: dict[str, Any],
    node: str,
    expected: tuple[int, Cause],
) -> None:
    """What else kept it from answering may do so each time; 77, say, or an agent that is killed at once."""

    def fail(*where: object, **more: object) -> None:
        raise error

    owner = {"stage": "train", "host": "node1", "pid": 1, "start_ticks": 1, "started": 1.0}
    owner |= {"slurm_job_id": "17", "slurm_restart": 2, "ended": 2.0 if of_first else None}
    (tmp_path / "attempts" / "0001").mkdir(parents=True)
    write_json(tmp_path / "attempts" / "0001" / "attempt.json", {"number": 1, **owner, **of_first})
    sinfo = tmp_path / "bin" / "sinfo"
    sinfo.parent.mkdir()
    sinfo.write_text(f"#!/bin/sh\necho '{node}'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(sinfo.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-4]")
    monkeypatch.setattr("jobs.nodes.Follower", fail)
    monkeypatch.setattr("jobs.agent._prepare", lambda: None)
    here = Execution(job_id="17", restart=2, node=3, num_nodes=4)
    monkeypatch.setattr("jobs.slurm.Execution.here", lambda: here)

    outcome = follow(Config(data=DataConfig(root="/x")), tmp_path)

    assert (outcome.exit_code, outcome.cause) == expected


@pytest.mark.parametrize(("job", "exit_code"), [("", ExitCode.CRASH), ("17", ExitCode.REQUEUE)])
def test_nothing_trains_on_a_node_that_failed_its_preflight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, exit_code: ExitCode
) -> None:
    monkeypatch.setattr("jobs.agent._prepare", lambda: None)
    monkeypatch.setattr("jobs.slurm.Execution.here", lambda: Execution(job_id=job))
    monkeypatch.setattr("jobs.slurm.host_of", lambda node: f"node{node + 1}")
    what = "cpu: 1 of 16,384 numbers of a float32 matrix product are wrong"
    monkeypatch.setattr(
        "jobs.preflight.fault_of_node", lambda folder, workers, is_broken: what if is_broken else ""
    )
    monkeypatch.setenv("UNIVIP_PLANT", "matmul:0@1")

    with attempts.attempt(tmp_path, "train") as mine:
        outcome = train(Config(data=DataConfig(root="/x")), tmp_path, mine)

    message = f"node1, which leads the others, failed its pre-flight: {what}"
    assert outcome == Outcome(exit_code, Cause.NODE_FAILURE, message)
    assert not list(tmp_path.glob("attempts/*/round-*"))
    [record] = [record for record in read(tmp_path) if record["kind"] == "preflight"]
    assert (record["host"], record["what"]) == ("node1", what)
    assert unfit.unfit_hosts(tmp_path, now=record["time"]) == ["node1"]


def test_a_stop_that_no_file_tells_of_is_not_taken_for_one_that_lets_a_node_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alone:
        """The first node of a job, whose workers have stopped so that another can join."""

        stop_round = Path()

        def again(self, number: int) -> None:
            pytest.fail("another round")

    def stopped(*_: object) -> Outcome:
        nodes.stop_round.parent.mkdir(parents=True)
        nodes.stop_round.touch()
        stop.ask()
        return STOPPED

    nodes: Any = Alone()
    stop = StopRequest(120.0)
    monkeypatch.setattr("jobs.agent._decide_round", stopped)
    mine = attempts.own_view(1, "train", Execution())

    rounds = _rounds(Config(data=DataConfig(root="/x")), tmp_path, mine, NullObserver(), nodes, stop)

    assert rounds == (0, STOPPED)


def test_nothing_that_torch_logs_of_a_lost_worker_loads_its_compiler() -> None:
    """The first record that is written out does, which takes an agent seconds while its workers are dead."""
    code = (
        "import logging, sys; from jobs import agent; agent._prepare()\n"
        "from jobs import elastic, nodes\n"
        "names = [name for name in logging.root.manager.loggerDict if name.startswith('torch.')]\n"
        "names = [name for name in names if '.elastic' in name or '.multiprocessing' in name]\n"
        "assert len(names) > 5, names\n"
        "for name in names: logging.getLogger(name).error('a worker is gone')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
