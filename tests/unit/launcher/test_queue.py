"""SLURM's queue is asked seldom, and what it says becomes the state of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import locks
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import read_json, write_json
from jobs.requests import CANCELLED_FILE, Request, Stage
from launcher import queue as queue_module
from launcher.cli.main import run
from launcher.queue import ask_anew, look
from launcher.slurm import JobState
from launcher.states import RunState, State, read_state
from univip.config import DataConfig


class Slurm:
    """Stand-ins for squeue and sacct that count their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.says(squeue="", sacct="")

    def says(self, **lines: str) -> None:
        for name, text in lines.items():
            (self.folder / f"{name}.txt").write_text(text)
            script = f"echo {name} >> {self.folder}/calls; cat {self.folder}/{name}.txt"
            self.answers(name, script)

    def answers(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.folder / name).chmod(0o755)

    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().split() if calls.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return Slurm(tmp_path / "bin")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose boxes are job 6, an array, and whose training is job 7."""
    run_dir = tmp_path / "runs" / "a-1"
    run_dir.mkdir(parents=True)
    header = RunHeader("a-1", RunKind.train, "f" * 64, 10, "proposals-1")
    store(Config(data=DataConfig(root="/x")), header, run_dir)
    stages = [Stage("shards", "proposals-1"), Stage("merge", "proposals-1"), Stage("train", "a-1")]
    request = Request("pipeline", stages, submitted=1.0)
    request.save(run_dir)
    jobs = [{"stage": stage.kind, "run": stage.run, "id": f"{n}"} for n, stage in enumerate(stages, start=6)]
    write_json(run_dir / "jobs.json", {"request": request.id, "jobs": jobs})
    return run_dir


def attempt(run_dir: Path, stage: str, job_id: str, **more: object) -> None:
    number = len(list((run_dir / "attempts").glob("*"))) + 1
    folder = run_dir / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True)
    owner = {"host": "node1", "pid": 1, "start_ticks": 1, "started": 1.0, "slurm_job_id": job_id}
    write_json(folder / "attempt.json", {"number": number, "stage": stage, **owner, **more})


def later(runs: Path, seconds: float) -> None:
    """Let time pass: what is remembered becomes that much older."""
    path = queue_module._path(runs, os.getuid())
    document = read_json(path)
    assert document is not None
    missing = {job_id: when - seconds for job_id, when in document["missing"].items()}
    seen = {job_id: when - seconds for job_id, when in document["seen_ended"].items()}
    older = {"time": document["time"] - seconds, "missing": missing, "seen_ended": seen}
    write_json(path, document | older)


def test_slurm_is_asked_once_in_30_s_however_many_look(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(squeue="7|RUNNING|None\n")

    for job_id in ["7", "8", "7", "9"]:
        look(tmp_path, [job_id])
    assert slurm.calls() == ["squeue"]

    later(tmp_path, 31)
    for job_id in ["7", "8", "9"]:
        look(tmp_path, [job_id])
    assert slurm.calls() == ["squeue", "sacct"]  # of 8 and 9, together

    later(tmp_path, 31)
    assert look(tmp_path, ["7", "8", "9"]).get("7") is not None
    assert slurm.calls() == ["squeue", "sacct", "squeue"]


def test_how_a_job_ended_is_asked_for_once_and_remembered(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(sacct="8|TIMEOUT\n")
    look(tmp_path, ["8"])
    later(tmp_path, 31)
    look(tmp_path, ["8"])
    for _ in range(3):
        later(tmp_path, 1000)
        ended = look(tmp_path, ["8"]).get("8")
        assert ended is not None
        assert ended.state == "TIMEOUT"

    assert slurm.calls() == ["squeue", "sacct", "squeue", "squeue", "squeue"]


def test_how_a_job_ended_is_known_where_there_is_no_accounting(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(squeue="7|FAILED|None\n8|FAILED|None\n9|RUNNING|None\n")
    look(tmp_path, ["7", "9"])
    slurm.says(squeue="8|FAILED|None\n9|FAILED|None\n")  # squeue forgets a job after some minutes
    slurm.answers("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    ask_anew(tmp_path)
    look(tmp_path, ["7", "9"])
    slurm.says(squeue="9|RUNNING|None\n")  # put back by an administrator
    ask_anew(tmp_path)

    found = look(tmp_path, ["7", "9"])

    assert found.ended == {"7": JobState("FAILED", "None")}  # nobody has asked for 8


def test_what_another_run_was_told_in_passing_is_remembered_too(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(squeue="7|RUNNING|None\n8|COMPLETED|None\n")
    asked = look(tmp_path, ["7"]).time

    found = look(tmp_path, ["8"])

    assert (found.ended["8"].state, found.seen_ended["8"]) == ("COMPLETED", asked)
    assert look(tmp_path, ["8"]) == found
    assert slurm.calls() == ["squeue"]


def test_without_accounting_and_without_an_answer_what_was_said_still_stands(
    slurm: Slurm, tmp_path: Path
) -> None:
    slurm.says(squeue="7|RUNNING|None\n")
    look(tmp_path, ["7"])
    for name in ("squeue", "sacct"):
        slurm.answers(name, "echo Unable to contact slurm controller >&2; exit 1")
    later(tmp_path, 31)

    found = look(tmp_path, ["7"])

    assert found.error.endswith("Unable to contact slurm controller")
    assert found.jobs["7"].state == "RUNNING"


def test_that_there_is_no_accounting_is_no_error(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(squeue="7|RUNNING|None\n")
    slurm.answers("sacct", f"echo sacct >> {slurm.folder}/calls; exit 1")
    for _ in range(3):
        assert look(tmp_path, ["7", "8"]).error == ""
        later(tmp_path, 31)

    assert slurm.calls() == ["squeue", "sacct", "squeue"]


@pytest.mark.parametrize(
    ("squeue", "state", "stage", "cause", "says"),
    [
        ("6|PENDING|Priority", State.queued, "shards", "Priority", ""),
        ("6|PENDING|JobHeldAdmin", State.queued, "shards", "JobHeldAdmin", "an administrator holds job 6"),
        ("6|PENDING|JobHeldUser", State.queued, "shards", "JobHeldUser", "scontrol release 6"),
        ("6|PENDING|JobHoldMaxRequeue", State.queued, "shards", "JobHoldMaxRequeue", "scontrol release 6"),
        (
            "6|PENDING|launch failed requeued held",
            State.queued,
            "shards",
            "launch failed requeued held",
            "scontrol release 6",
        ),
        ("6|SPECIAL_EXIT|", State.queued, "shards", "SPECIAL_EXIT", "scontrol release 6"),
        ("6|RUNNING|None\n6|PENDING|JobArrayTaskLimit", State.running, "shards", "", ""),
        ("6|COMPLETED|None\n7|PENDING|Dependency", State.queued, "merge", "", ""),
        ("6|COMPLETED|None\n7|COMPLETED|None\n8|RUNNING|None", State.running, "train", "", ""),
        (
            "6|FAILED|NonZeroExitCode\n6|COMPLETED|None",
            State.failed,
            "shards",
            "unknown",
            "before it could leave a word",
        ),
        ("6|CANCELLED|None", State.cancelled, "shards", "", "job 6 was cancelled"),
        ("6|OUT_OF_MEMORY|OutOfMemory", State.stopped, "shards", "out_of_memory", "OUT_OF_MEMORY"),
        ("6|TIMEOUT|TimeLimit", State.stopped, "shards", "time_limit", "TIMEOUT"),
        (
            "6|PENDING|DependencyNeverSatisfied",
            State.stopped,
            "shards",
            "DependencyNeverSatisfied",
            "waits for a job that has failed",
        ),
        ("9|RUNNING|None", State.stopped, "shards", "", ""),
    ],
)
def test_the_state_of_a_run_is_that_of_its_first_job_that_is_not_through(
    slurm: Slurm, run_dir: Path, squeue: str, state: State, stage: str, cause: str, says: str
) -> None:
    slurm.says(squeue=squeue + "\n")

    found = read_state(run_dir)

    assert (found.state, found.stage, found.cause) == (state, stage, cause)
    assert says in found.message


def test_a_job_that_ended_well_is_believed_until_its_files_can_be_seen(slurm: Slurm, run_dir: Path) -> None:
    """A network file system shows the end of an attempt a minute late."""
    for name in ("6", "7"):
        attempt(run_dir.parent / "proposals-1", "merge", name, ended=2.0, exit_code=0)
    attempt(run_dir, "train", "8")
    slurm.says(squeue="6|COMPLETED|None\n7|COMPLETED|None\n8|COMPLETED|None\n")

    assert read_state(run_dir).state is State.running
    later(run_dir.parent, 80)
    assert read_state(run_dir).state is State.running
    later(run_dir.parent, 20)
    assert read_state(run_dir).state is State.stopped


def test_what_slurm_cancels_after_a_stage_that_was_done_is_not_taken_for_a_persons_act(
    slurm: Slurm, run_dir: Path
) -> None:
    """One process of a job that was too large is enough for SLURM to call all of it failed."""
    attempt(run_dir.parent / "proposals-1", "merge", "7", ended=2.0, exit_code=0)
    slurm.says(squeue="6|COMPLETED|None\n7|OUT_OF_MEMORY|OutOfMemory\n8|CANCELLED|Dependency\n")

    state = read_state(run_dir)

    assert (state.state, state.stage, state.cause) == (State.stopped, "train", "DependencyNeverSatisfied")


def test_the_runs_of_another_user_are_looked_for_among_their_jobs(
    slurm: Slurm, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.answers(
        "squeue",
        f"echo squeue >> {slurm.folder}/calls; [ $1 != --user={os.getuid()} ] || echo '6|RUNNING|'",
    )
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    look(run_dir.parent, ["99"])  # of the user who looks there is nothing

    assert read_state(run_dir) == RunState(State.running, "shards")
    assert slurm.calls() == ["squeue", "squeue"]  # of each user


def test_what_one_user_was_told_is_not_what_another_one_reads(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be less (`PrivateData=jobs`), and in files that only its writer may read."""
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    for _ in range(2):
        assert look(tmp_path, ["7"], user=owner).get("7") is None
    before = {path: path.read_bytes() for path in tmp_path.glob(".slurm-*")}
    monkeypatch.setattr(os, "getuid", lambda: owner)
    slurm.says(squeue="7|RUNNING|None\n")

    found = [look(tmp_path, ["7"], user=owner).get("7") for _ in range(2)]

    assert found == [JobState("RUNNING", "None")] * 2
    assert slurm.calls() == ["squeue", "squeue"]
    assert before == {path: path.read_bytes() for path in before}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a process of another machine that asks, on a file system without locks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(queue_module, "_PATIENCE_S", 0.1)
    path = queue_module._path(tmp_path, os.getuid()).with_suffix(".lock.owner")
    path.write_text("17\nanother-machine\n")
    return path


def test_who_died_while_it_asked_keeps_nobody_from_an_answer(
    slurm: Slurm, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.says(squeue="7|RUNNING|None\n")
    asleep: list[float] = []
    sleep = time.sleep

    def doze(seconds: float) -> None:
        asleep.append(seconds)  # subprocess sleeps as well
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", doze)

    assert look(tmp_path, ["7"]).get("7") == JobState("RUNNING", "None")
    waits = asleep.count(queue_module._POLL_S)
    states = [look(tmp_path, [job_id]).get("7") for job_id in ("7", "8", "9")]
    ask_anew(tmp_path)

    assert states == [JobState("RUNNING", "None")] * 3
    assert slurm.calls() == ["squeue"]
    assert waits > 0
    assert asleep.count(queue_module._POLL_S) == waits  # once is enough
    assert marker.exists()


def test_once_the_marker_is_gone_all_processes_share_one_answer_again(
    slurm: Slurm, tmp_path: Path, marker: Path
) -> None:
    look(tmp_path, ["7"])
    marker.unlink()
    slurm.says(squeue="7|RUNNING|None\n")

    ask_anew(tmp_path)

    assert look(tmp_path, ["7"]).get("7") == JobState("RUNNING", "None")
    assert read_json(queue_module._path(tmp_path, os.getuid())) is not None
    assert slurm.calls() == ["squeue", "squeue"]


def test_who_comes_while_another_process_asks_waits_for_its_answer(slurm: Slurm, tmp_path: Path) -> None:
    go = tmp_path / "go"
    slurm.answers("squeue", f"echo squeue >> {slurm.folder}/calls; until [ -e {go} ]; do sleep 0.01; done")
    code = (
        "import sys; from pathlib import Path; from launcher import queue; queue._PATIENCE_S = 0.0; "
        "Path(sys.argv[2]).touch(); queue.look(Path(sys.argv[1]), ['7'])"
    )

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(tmp_path / name)])

    with start("first") as first:
        while not slurm.calls():
            time.sleep(0.01)
        with start("second") as second:
            while not (tmp_path / "second").exists():
                time.sleep(0.01)
            time.sleep(0.3)  # it has come to the lock, and would have asked
            go.touch()
            assert [first.wait(60), second.wait(60)] == [0, 0]

    assert slurm.calls() == ["squeue"]


def test_in_a_folder_that_cannot_be_written_a_process_remembers_for_itself(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *, wait: bool = True) -> Iterator[None]:
        raise PermissionError(f"{path} belongs to somebody else")

    monkeypatch.setattr(queue_module, "locked", refuse)
    slurm.says(squeue="7|RUNNING|None\n")

    states = [look(tmp_path, ["7", "8"]).get("7") for _ in range(3)]
    ask_anew(tmp_path)

    assert states == [JobState("RUNNING", "None")] * 3
    assert slurm.calls() == ["squeue"]


@pytest.mark.parametrize(
    ("squeue", "state"),
    [("PENDING", State.cancelled), ("CONFIGURING", State.running), ("RUNNING", State.running)],
)
def test_a_run_is_cancelled_once_none_of_it_runs(
    slurm: Slurm, run_dir: Path, squeue: str, state: State
) -> None:
    (run_dir / CANCELLED_FILE).touch()
    slurm.says(squeue=f"6|{squeue}|None\n")

    assert read_state(run_dir).state is state


def test_files_are_believed_before_an_old_answer(slurm: Slurm, run_dir: Path) -> None:
    boxes = run_dir.parent / "proposals-1"
    slurm.says(squeue="6|RUNNING|None\n7|PENDING|Dependency\n8|PENDING|Dependency\n")
    assert read_state(run_dir) == RunState(State.running, "shards")

    attempt(boxes, "merge", "7", ended=2.0, exit_code=0)
    assert read_state(run_dir) == RunState(State.queued, "train")

    attempt(run_dir, "train", "8", started=time.time() + 1)
    assert read_state(run_dir) == RunState(State.running, "train", attempt=1)

    attempt(run_dir, "train", "8", ended=3.0, exit_code=77, cause="refused", message="wrong")
    assert read_state(run_dir) == RunState(State.failed, "train", "refused", 2, "wrong")
    assert slurm.calls() == ["squeue"]


def test_a_shard_that_failed_says_why(slurm: Slurm, run_dir: Path) -> None:
    boxes = run_dir.parent / "proposals-1"
    attempt(boxes, "shard:0", "6_0", ended=2.0, exit_code=1, cause="crash", message="it broke")
    rest = "7|PENDING|Dependency\n8|PENDING|Dependency\n"
    attempt(boxes, "shard:1", "6_1", ended=2.0, exit_code=0, cause="done")
    slurm.says(squeue=f"6|RUNNING|None\n6|FAILED|NonZeroExitCode\n{rest}")
    assert read_state(run_dir).state is State.running

    slurm.says(squeue=f"6|COMPLETED|None\n6|FAILED|NonZeroExitCode\n{rest}")
    later(run_dir.parent, 31)

    assert read_state(run_dir) == RunState(State.failed, "shards", "crash", 0, "it broke")


def test_a_job_that_slurm_did_not_put_back_is_stopped_and_says_what_had_stopped_it(
    slurm: Slurm, run_dir: Path
) -> None:
    """No scontrol on its node, say: the exit status alone makes SLURM say that it failed."""
    boxes = run_dir.parent / "proposals-1"
    attempt(boxes, "shard:0", "6_0", ended=2.0, exit_code=75, cause="preemption", message="preempted")
    slurm.says(squeue="6|FAILED|NonZeroExitCode\n7|PENDING|DependencyNeverSatisfied\n")

    assert read_state(run_dir) == RunState(State.stopped, "shards", "preemption", 0, "preempted")


def test_a_shard_that_was_killed_with_all_its_processes_left_no_word(slurm: Slurm, run_dir: Path) -> None:
    attempt(run_dir.parent / "proposals-1", "shard:0", "6_0")
    slurm.says(squeue="6|COMPLETED|None\n6|FAILED|NonZeroExitCode\n")

    state = read_state(run_dir)

    assert (state.state, state.stage, state.cause) == (State.failed, "shards", "killed")


def test_an_element_that_squeue_forgets_before_the_others_is_remembered(slurm: Slurm, run_dir: Path) -> None:
    rest = "7|PENDING|DependencyNeverSatisfied\n"
    slurm.says(squeue=f"6|CANCELLED|None\n6|COMPLETED|None\n{rest}")
    before = read_state(run_dir)
    slurm.says(squeue=f"6|COMPLETED|None\n{rest}")
    later(run_dir.parent, 31)

    assert before.state is State.cancelled
    assert read_state(run_dir) == before

    slurm.says(squeue=f"6|RUNNING|None\n{rest}")  # put back into the queue
    later(run_dir.parent, 31)

    assert read_state(run_dir) == RunState(State.running, "shards")


def test_where_slurm_never_answered_a_run_is_what_its_files_say(slurm: Slurm, run_dir: Path) -> None:
    slurm.answers("squeue", "echo no controller >&2; exit 1")
    assert read_state(run_dir).state is State.queued
    assert "no controller" in read_state(run_dir).message

    attempt(run_dir.parent / "proposals-1", "shard:0", "6_0")

    assert read_state(run_dir).state is State.running


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_status_says_that_slurm_does_not_answer_where_a_run_depends_on_it(
    slurm: Slurm,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    status = ["--runs", str(run_dir.parent), "status", *options]
    monkeypatch.setenv("UNIVIP_RUNS", "")
    slurm.says(squeue="6|RUNNING|None\n7|PENDING|Dependency\n8|PENDING|Dependency\n")
    assert run(status) == 0
    assert capsys.readouterr().err == ""

    slurm.answers("squeue", "echo no controller >&2; echo no words >&2; exit 1")
    later(run_dir.parent, 31)
    assert run(status) == 0

    [line] = capsys.readouterr().err.splitlines()
    words = (
        r"SLURM did not answer at [-0-9]+ [:0-9]+ \(.+\); states are as it told before, and as files tell\."
    )
    assert re.fullmatch(words, line)
    assert slurm.calls() == ["squeue"]  # the line costs no call of its own


def test_status_says_nothing_of_slurm_where_all_runs_are_over(
    slurm: Slurm, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIVIP_RUNS", "")
    slurm.says(squeue="6|FAILED|None\n7|PENDING|DependencyNeverSatisfied\n8|PENDING|Dependency\n")
    assert read_state(run_dir).is_over()
    slurm.answers("squeue", "echo no controller >&2; exit 1")
    later(run_dir.parent, 31)

    assert run(["--runs", str(run_dir.parent), "status"]) == 0

    assert capsys.readouterr().err == ""
