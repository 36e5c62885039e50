"""Attempts are numbered once, owned by a living process, and exclusive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.attempts import Attempt, RunBusyError, attempt, living_attempts, read_attempts, start_ticks


def test_attempts_are_numbered_from_one_and_remember_how_they_ended(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as first:
        first.exit_code, first.cause = 75, "stopped"
    with attempt(tmp_path, "evaluate") as second:
        assert second.number == 2
        assert [each.number for each in living_attempts(tmp_path)] == [2]

    assert [(each.stage, each.exit_code) for each in read_attempts(tmp_path)] == [
        ("train", 75),
        ("evaluate", None),
    ]
    assert living_attempts(tmp_path) == []


def test_attempts_of_a_newer_version_of_the_code_can_be_read(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as newer:
        pass
    path = newer.directory(tmp_path) / "attempt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": "fine"}))

    assert read_attempts(tmp_path) == [newer]


def test_attempts_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as first:
        pass
    for number in (10_000, 9_999):
        first.number = number
        first.directory(tmp_path).mkdir()
        first.save(tmp_path)

    assert [each.number for each in read_attempts(tmp_path)] == [1, 9_999, 10_000]


def test_a_second_process_on_the_same_run_is_refused_and_says_who_owns_it(tmp_path: Path) -> None:
    with attempt(tmp_path, "train"), pytest.raises(RunBusyError) as caught, attempt(tmp_path, "train"):
        pytest.fail("two owners")

    assert f"process {os.getpid()}" in str(caught.value)
    assert caught.value.fix == f"univip cancel {tmp_path}"


def test_elements_of_an_array_share_a_run(tmp_path: Path) -> None:
    with (
        attempt(tmp_path, "shard:0", exclusive=False),
        attempt(tmp_path, "shard:1", exclusive=False) as second,
    ):
        assert second.number == 2


def test_an_element_of_an_array_that_died_on_another_host_does_not_keep_the_run(tmp_path: Path) -> None:
    with attempt(tmp_path, "shard:3", exclusive=False) as dead:
        pass
    path = dead.directory(tmp_path) / "attempt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ended": None, "host": "node-that-died"}))

    with attempt(tmp_path, "merge") as mine:
        assert mine.number == 2


def test_a_dead_owner_does_not_keep_the_run(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    with attempt(tmp_path, "train") as dead:
        dead.pid, dead.start_ticks = child.pid, start_ticks(child.pid)
    path = dead.directory(tmp_path) / "attempt.json"
    record = json.loads(path.read_text()) | {"ended": None}
    path.write_text(json.dumps(record))
    assert living_attempts(tmp_path)

    child.kill()
    child.wait()

    assert living_attempts(tmp_path) == []
    with attempt(tmp_path, "train") as next_one:
        assert next_one.number == 2


@pytest.mark.parametrize(
    ("mine", "scontrol", "is_refused"),
    [
        (("7", "1"), "exit 1", False),  # requeued: one execution of a job at a time, whatever SLURM says
        (("7", "0"), "exit 1", True),
        (("8", "0"), "echo JobId=7 JobState=RUNNING Restarts=0", True),
        (("8", "0"), "echo JobId=7 JobState=RUNNING Restarts=1", False),  # but not this execution of it
        (("8", "0"), "echo JobId=7 JobState=NODE_FAIL Restarts=0", False),
        (("8", "0"), "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", False),
        (("8", "0"), "echo Unable to contact slurm controller >&2; exit 1", True),
        (("", "0"), "echo JobId=7 JobState=COMPLETED Restarts=0", False),
        (("", "0"), "exit 1", True),
    ],
)
def test_a_job_takes_over_from_one_that_slurm_has_ended_on_another_host(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mine: tuple[str, str],
    scontrol: str,
    is_refused: bool,
) -> None:
    for name, text in {"scontrol": scontrol, "sacct": "echo 2026-01-01T00:00:00|NODE_FAIL"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text.replace('|', chr(92) + '|')}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with attempt(run_dir, "train") as dead:
        pass
    path = dead.directory(run_dir) / "attempt.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ended": None, "host": "node-that-died"}))
    job_id, restart = mine
    monkeypatch.setenv("SLURM_JOB_ID", job_id) if job_id else monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)

    if is_refused:
        with pytest.raises(RunBusyError, match="node-that-died"), attempt(run_dir, "train"):
            pytest.fail("two owners")
    else:
        with attempt(run_dir, "train") as taken:
            assert taken.number == 2
        if job_id:
            assert read_attempts(run_dir)[0].cause == "node_failure"


def test_slurm_is_asked_about_a_node_by_its_own_name_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where host names have a domain; SLURM has no accounting here."""
    states = f'[ "$3" = --nodes=gpu07 ] && echo down || {{ echo "$@" > {tmp_path}/asked; exit 1; }}'
    for name, text in {"sacct": "exit 1", "sinfo": states}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("socket.gethostname", lambda: "gpu07.cluster.example.org")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu07")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with attempt(run_dir, "train") as lost:
        assert (lost.host, lost.slurm_node) == ("gpu07.cluster.example.org", "gpu07")
    lost.ended, lost.start_ticks = None, lost.start_ticks + 1
    lost.save(run_dir)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    with attempt(run_dir, "train"):
        pass

    assert read_attempts(run_dir)[0].message == "node gpu07 is down"


def test_an_attempt_without_slurms_name_of_its_node_can_be_read(tmp_path: Path) -> None:
    with attempt(tmp_path, "train") as mine:
        pass
    path = mine.directory(tmp_path) / "attempt.json"
    document = json.loads(path.read_text())
    assert document.pop("slurm_node") == ""
    path.write_text(json.dumps(document | {"host": "gpu07"}))

    [read] = read_attempts(tmp_path)

    assert (read.slurm_node, read.node) == ("", "gpu07")


def test_a_reused_pid_is_not_the_owner() -> None:
    mine = Attempt(1, "train", os.uname().nodename, os.getpid(), start_ticks(os.getpid()) + 1, "", 0.0)

    assert not mine.is_alive()


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert start_ticks(child.pid) == 0
    child.wait()


def test_many_processes_that_start_at_once_get_one_number_each(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from jobs.attempts import attempt\n"
        "with attempt(Path(sys.argv[1]), 'shard', exclusive=False) as mine: print(mine.number)"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]

    numbers = sorted(int(child.communicate()[0]) for child in children)

    assert numbers == [1, 2, 3, 4, 5, 6]
    assert [each.number for each in read_attempts(tmp_path)] == numbers
