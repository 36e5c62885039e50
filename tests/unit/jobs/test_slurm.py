"""What a job learns from SLURM; the outputs are those of a real SLURM 22.05, with other times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import slurm
from jobs.outcomes import Cause
from jobs.slurm import (
    Execution,
    duration_s,
    has_node,
    is_on_nodes,
    known_nodes,
    num_nodes,
    requeue,
    why_ended,
    why_signalled,
)

TIMES = ("start", "end", "preempted")
MINE = Execution("126", 0)
# `scontrol show job --oneliner`; the job has a limit of five minutes.
SHOWN = (
    "JobId=126 JobName={name} UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=10 Nice=0 "
    "Account=research QOS=low JobState={state} Reason=None Dependency=(null) Requeue=1 Restarts={restarts} "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:02 TimeLimit=00:05:00 TimeMin=N/A SubmitTime={start} "
    "EligibleTime={start} AccrueTime={start} StartTime={start} EndTime={end} Deadline=N/A "
    "PreemptEligibleTime={start} PreemptTime={preempted} SuspendTime=None SecsPreSuspend=0 "
    "LastSchedEval={start} Scheduler=Main Partition=main AllocNode:Sid=localhost:7706 ReqNodeList=(null) "
    "ExcNodeList=(null) NodeList={nodelist} BatchHost=node1 NumNodes={nodes} NumCPUs=1 NumTasks=1 "
    "CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=1,mem=100M,node=1,billing=1 Comment={comment}  "
    "WorkDir=/home/me Power= \n"
)


class Stand:
    """Stand-ins for SLURM's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def says(self, command: str, text: str, *, error: str = "") -> None:
        (self.folder / f"{command}.out").write_text(text)
        script = f'echo {command} "$@" >> {self.folder}/asked; cat {self.folder}/{command}.out'
        script += f"; echo '{error}' >&2; exit 1" if error else ""
        (self.folder / command).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / command).chmod(0o755)

    def shows(self, **changes: object) -> None:
        """Let scontrol tell of a job; times (`start`, `end`, `preempted`) are seconds from now."""
        values = {"name": "wrap", "state": "RUNNING", "restarts": 0, "start": -60, "end": 240, **changes}
        now = int(time.time())
        times = {name: now + seconds for name in TIMES if isinstance(seconds := values.get(name), int)}
        texts = {"preempted": "None", "comment": "a-1", "nodes": "1", "nodelist": "node1"}
        self.says("scontrol", SHOWN.format(**{**texts, **values, **times}))


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Stand(tmp_path)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, Cause.STOPPED),  # nothing of SLURM, though the job is shorter than ten minutes
        ({"preempted": 0, "end": 10}, Cause.PREEMPTION),
        ({"state": "COMPLETING", "preempted": 0}, Cause.PREEMPTION),
        ({"end": 30}, Cause.TIME_LIMIT),
        ({"state": "COMPLETING", "start": -301, "end": -1}, Cause.TIME_LIMIT),
        ({"state": "PENDING", "restarts": 1, "start": 6}, Cause.STOPPED),  # scontrol requeue
        ({"state": "CANCELLED", "end": 0}, Cause.CANCELLED),
    ],
    ids=str,
)
def test_why_a_job_is_signalled(stand: Stand, changes: dict[str, object], cause: Cause) -> None:
    stand.shows(**changes)

    assert why_signalled(MINE, signal_delay_s=30)[0] == cause


@pytest.mark.parametrize("field", ["name", "comment"])
def test_what_a_user_writes_into_a_job_is_no_word_of_slurm(stand: Stand, field: str) -> None:
    now = int(time.time())
    stand.shows(**{field: f"x JobState=CANCELLED Restarts=9 PreemptTime={now} EndTime={now} NumNodes=7"})

    assert why_signalled(MINE, signal_delay_s=30)[0] == Cause.STOPPED
    assert is_on_nodes("126", 0)
    assert num_nodes(MINE) == 1


def test_a_folder_whose_name_is_no_utf8_hides_no_reason(stand: Stand) -> None:
    stand.shows(end=30)
    shown = stand.folder / "scontrol.out"
    shown.write_bytes(shown.read_bytes().replace(b"/home/me", "/home/Käthe".encode("latin-1")))

    assert why_signalled(MINE, signal_delay_s=30)[0] == Cause.TIME_LIMIT


@pytest.mark.parametrize(
    "name",
    [
        "SACCT_LOCAL",
        "SCANCEL_INTERACTIVE",
        "SCANCEL_PARTITION",
        "SCONTROL_LOCAL",
        "SINFO_PARTITION",
        "SQUEUE_PARTITION",
        "SQUEUE_FORMAT2",
        "SQUEUE_USERS",
    ],
)
def test_what_a_user_set_for_a_command_is_not_meant_for_its_use_here(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stays = {"SLURM_CONF": "/etc/b.conf", "SLURM_CLUSTERS": "b", "SQUEUE_ALL": "1", "SINFO_FEDERATION": "1"}
    for each in (name, *stays):
        monkeypatch.setenv(each, stays.get(each, "debug"))

    told = dict(line.split("=", 1) for line in slurm.answer(["env"]).splitlines() if "=" in line)

    assert name not in told
    assert told.items() >= stays.items()


def test_of_nodes_those_are_known_that_slurm_has(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.says("sinfo", "gpu07\ngpu07\ngpu08\n")

    assert known_nodes(["gpu08", "gpu99", "gpu07"]) == ["gpu08", "gpu07"]
    assert known_nodes([]) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert known_nodes(["gpu99"]) == ["gpu99"]


def test_without_scontrol_a_signal_is_a_request_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert why_signalled(MINE, signal_delay_s=30) == (Cause.STOPPED, "asked to stop")
    assert is_on_nodes("126", 0) is None
    assert num_nodes(Execution("126", 0, 0, 2)) == 2
    assert "scontrol" in requeue(MINE)


@pytest.mark.parametrize(
    ("state", "restart", "expected"),
    [
        ("RUNNING", 0, True),
        ("SUSPENDED", 0, True),
        ("CONFIGURING", 0, True),
        ("RUNNING", 1, False),
        ("PENDING", 0, False),
        ("REQUEUE_HOLD", 0, False),
        ("NODE_FAIL", 0, False),
    ],
)
def test_an_execution_is_on_its_nodes(stand: Stand, state: str, restart: int, expected: bool) -> None:
    stand.shows(state=state, restarts=0)

    assert is_on_nodes("126", restart) is expected


def test_a_job_that_slurm_has_forgotten_is_not_on_its_nodes(stand: Stand) -> None:
    stand.says("scontrol", "", error="slurm_load_jobs error: Invalid job id specified")

    assert is_on_nodes("126", 0) is False


@pytest.mark.parametrize(("shown", "count"), [("1", 1), ("2-4", 2)])
def test_a_job_has_as_many_nodes_as_slurm_has_left_it(stand: Stand, shown: str, count: int) -> None:
    stand.shows(nodes=shown)

    assert num_nodes(Execution("126", 0, 0, 3)) == count


# `sacct --duplicates --allocations --format=Start,State` of a job that was preempted, lost a node of two,
# was killed for its memory, and cancelled; the rows come in any order.
ROWS = """\
1795294799|NODE_FAIL
1795294785|PREEMPTED
1795294850|CANCELLED by 0
1795294790|RESIZING
1795294820|OUT_OF_MEMORY
"""


@pytest.mark.parametrize(
    ("restart", "cause"),
    [(0, Cause.PREEMPTION), (1, Cause.NODE_FAILURE), (2, Cause.OUT_OF_MEMORY), (3, Cause.CANCELLED)],
)
def test_the_accounting_tells_how_each_execution_ended(stand: Stand, restart: int, cause: Cause) -> None:
    stand.says("sacct", ROWS)

    assert why_ended("126", restart, "node1")[0] == cause


@pytest.mark.parametrize(("node", "cause"), [("down*", Cause.NODE_FAILURE), ("idle", Cause.STOPPED)])
def test_of_a_job_that_was_requeued_its_node_tells_why(stand: Stand, node: str, cause: Cause) -> None:
    """The others of a job ask for it when its first node is lost."""
    stand.says("sacct", "1795294785|REQUEUED\n")
    stand.says("sinfo", f"{node}\n")

    assert why_ended("126", 0, "node1")[0] == cause


@pytest.mark.parametrize(
    ("state", "cause"),
    [("down*", Cause.NODE_FAILURE), ("drain", Cause.NODE_FAILURE), ("idle", Cause.UNKNOWN)],
)
def test_without_accounting_the_state_of_the_node_tells(stand: Stand, state: str, cause: Cause) -> None:
    stand.says("sacct", "", error="Slurm accounting storage is disabled")
    stand.says("sinfo", f"{state}\n")

    assert why_ended("126", 0, "node1")[0] == cause
    assert "--all" in (stand.folder / "asked").read_text().split()  # else none in a hidden partition


def test_an_execution_whose_end_is_not_written_down_yet_is_unknown(stand: Stand) -> None:
    stand.says("sacct", "1795294785|RUNNING\n")
    stand.says("sinfo", "idle\n")

    assert why_ended("126", 0, "node1")[0] == Cause.UNKNOWN
    assert why_ended("126", 1, "node1")[0] == Cause.UNKNOWN


def test_a_requeue_is_through_although_slurm_ends_its_job_at_once(stand: Stand) -> None:
    """The stand-in signals the process that asks, as SLURM signals the step, and then takes its time."""
    script = (
        "import os, signal, time\n"
        "for pid in (os.getppid(), os.getpid()): os.kill(pid, signal.SIGTERM)\n"
        f"time.sleep(0.3)\nopen({str(stand.folder / 'through')!r}, 'w').close()\n"
    )
    (stand.folder / "scontrol").write_text(f"#!{sys.executable}\n{script}")  # a shell may unblock signals
    (stand.folder / "scontrol").chmod(0o755)
    code = "from jobs.slurm import Execution, requeue; requeue(Execution('126', 0))"

    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ)

    assert done.returncode == -signal.SIGTERM  # afterwards
    assert (stand.folder / "through").exists()


def test_an_element_of_an_array_and_a_requeue_are_executions_of_their_own() -> None:
    here = {"SLURM_JOB_ID": "130", "SLURM_RESTART_COUNT": "2", "SLURM_NODEID": "1", "SLURM_NNODES": "4"}

    assert Execution.here(here) == Execution("130", 2, 1, 4)
    element = {**here, "SLURM_ARRAY_JOB_ID": "128", "SLURM_ARRAY_TASK_ID": "7"}
    assert Execution.here(element) == Execution("128_7", 2, 1, 4)
    assert Execution.here({**here, "SLURMD_NODENAME": "gpu07"}).node_name == "gpu07"
    assert Execution.here({}) == Execution()


def test_a_node_that_slurm_does_not_have_any_more_is_passed_over(stand: Stand) -> None:
    """With its name in the list SLURM would refuse the whole of it."""
    stand.shows()
    stand.says("sinfo", "gpu07\ngpu07\ngpu08\n")

    assert requeue(MINE, without=["gpu07", "gpu07.cluster.example.org", "gpu99"]) == ""

    [*_, update] = (stand.folder / "asked").read_text().splitlines()
    assert update == "scontrol update JobId=126 ExcNodeList=gpu07"


def test_a_job_is_queued_again_without_a_list_if_slurm_has_none_of_the_nodes(stand: Stand) -> None:
    stand.shows()
    stand.says("sinfo", "gpu08\n")

    assert requeue(MINE, without=["gpu99"]) == ""

    asked = (stand.folder / "asked").read_text().splitlines()
    assert [line for line in asked if line.startswith("scontrol")] == ["scontrol requeue 126"]


def test_durations_are_those_of_slurm() -> None:
    assert [duration_s(text) for text in ("00:05:00", "2-00:00:00", "1-02:03:04")] == [300, 172800, 93784]
    assert [duration_s(text) for text in ("UNLIMITED", "", "Partition_Limit")] == [float("inf")] * 3


def test_a_node_has_the_name_that_slurm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[08-10],cpu-a")

    assert [slurm.host_of(node) for node in range(4)] == ["gpu08", "gpu09", "gpu10", "cpu-a"]


@pytest.mark.parametrize(
    ("listed", "expected"), [("node[1-2]", True), ("node2", False), ("node1", True), ("(null)", False)]
)
def test_whether_a_job_still_has_a_node(stand: Stand, listed: str, expected: bool) -> None:
    stand.shows(nodelist=listed)

    assert has_node(MINE, "node1") == expected


def test_without_an_answer_a_job_has_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert has_node(MINE, "node1")
