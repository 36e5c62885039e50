"""What SLURM gave up on is submitted again; what a person must look at is not."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from jobs.attempts import read_attempts
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import write_json
from jobs.requests import Request, Stage
from jobs.unfit import failed_preflight
from launcher.states import State, read_state
from launcher.supervise import Decision, decide, round_of
from univip.checkpoint import layout
from univip.config import DataConfig
from univip.observe import NullObserver
from univip.resilience.ledger import Ledger


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose training was job 7."""
    (tmp_path / "bin").mkdir()
    for name in ("squeue", "sacct"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncat {tmp_path}/{name}\n")
        (tmp_path / "bin" / name).chmod(0o755)
        (tmp_path / name).write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    run_dir = tmp_path / "runs" / "a-1"
    run_dir.mkdir(parents=True)
    header = RunHeader("a-1", RunKind.train, "f" * 64, 10)
    store(Config(data=DataConfig(root="/x")), header, run_dir)
    request = Request("train", [Stage("train", "a-1")], submitted=1.0)
    request.save(run_dir)
    jobs = [{"stage": "train", "run": "a-1", "id": "7"}]
    write_json(run_dir / "jobs.json", {"request": request.id, "jobs": jobs})
    return run_dir


def slurm_says(run_dir: Path, state: str) -> None:
    (run_dir.parents[1] / "squeue").write_text(f"7|{state}\n")


def ended(run_dir: Path, exit_code: int, cause: str) -> None:
    folder = run_dir / "attempts" / "0001"
    folder.mkdir(parents=True)
    owner = {"host": "node1", "pid": 1, "start_ticks": 1, "started": 1.0, "slurm_job_id": "7"}
    how = {"ended": 2.0, "exit_code": exit_code, "cause": cause}
    write_json(folder / "attempt.json", {"number": 1, "stage": "train", **owner, **how})


def resubmitted(run_dir: Path, decision: Decision, times: int) -> None:
    for _ in range(times):
        Ledger(run_dir / "ledger.jsonl").append("supervise", cause=decision.cause, progress=decision.progress)


def test_what_somebody_cancelled_is_left_alone_also_when_slurm_has_forgotten_it(run_dir: Path) -> None:
    ended(run_dir, 75, "cancelled")

    assert read_state(run_dir).state is State.cancelled
    assert decide(run_dir, now=100.0) is None


@pytest.mark.parametrize("state", ["RUNNING|None", "PENDING|Priority", "CANCELLED|None"])
def test_what_runs_waits_or_was_cancelled_is_left_alone(run_dir: Path, state: str) -> None:
    slurm_says(run_dir, state)

    assert decide(run_dir, now=0.0) is None


def test_a_job_that_is_held_is_named_with_what_releases_it(run_dir: Path) -> None:
    slurm_says(run_dir, "PENDING|JobHeldUser")

    decision = decide(run_dir, now=100.0)

    assert decision == Decision(False, "JobHeldUser: scontrol release 7", "JobHeldUser")


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_looked_at(run_dir: Path) -> None:
    slurm_says(run_dir, "PENDING|JobHeldUser")
    damaged = run_dir.with_name("damaged-1")
    shutil.copytree(run_dir, damaged)
    request = Request.load(run_dir)
    assert request is not None
    write_json(damaged / "jobs.json", {"request": request.id})

    said, is_well = round_of([damaged, run_dir])

    assert not is_well
    assert said[0].startswith("damaged-1: KeyError")
    assert said[1] == "a-1: JobHeldUser: scontrol release 7"
    assert round_of([run_dir]) == (said[1:], True)


@pytest.mark.parametrize(
    ("state", "cause"), [("NODE_FAIL|None", "node_failure"), ("TIMEOUT|TimeLimit", "time_limit")]
)
def test_what_the_cluster_ended_is_submitted_again(run_dir: Path, state: str, cause: str) -> None:
    slurm_says(run_dir, state)

    decision = decide(run_dir, now=0.0)

    assert decision is not None
    assert (decision.resubmit, decision.cause) == (True, cause)


@pytest.mark.parametrize("exit_code", [76, 77])
def test_what_a_person_must_look_at_is_not(run_dir: Path, exit_code: int) -> None:
    slurm_says(run_dir, "FAILED|NonZeroExitCode")
    ended(run_dir, exit_code, "killed")

    decision = decide(run_dir, now=0.0)

    assert decision is not None
    assert not decision.resubmit
    assert f"ended with {exit_code}" in decision.why


def test_any_element_of_an_array_can_need_a_person(run_dir: Path) -> None:
    request = Request("proposals", [Stage("shards", "a-1")], submitted=1.0)
    request.save(run_dir)
    write_json(
        run_dir / "jobs.json",
        {"request": request.id, "jobs": [{"stage": "shards", "run": "a-1", "id": "7"}]},
    )
    slurm_says(run_dir, "FAILED|NonZeroExitCode")
    for number, (shard, job, code) in enumerate(
        [("1", "6_1", 77), ("2", "7_2", 75), ("1", "7_1", 76), ("3", "7_3", 75)], start=1
    ):
        owner = {"host": "node1", "pid": 1, "start_ticks": 1, "started": 1.0, "slurm_job_id": job}
        how = {"ended": 2.0, "exit_code": code, "cause": "time_limit", "message": f"of {shard}"}
        folder = run_dir / "attempts" / f"{number:04d}"
        folder.mkdir(parents=True)
        write_json(folder / "attempt.json", {"number": number, "stage": f"shard:{shard}", **owner, **how})

    state = read_state(run_dir)

    assert (state.state, state.message) == (State.failed, "of 1")
    assert decide(run_dir, now=100.0) == Decision(
        False, "ended with 76, which a person must look at", "time_limit"
    )


def test_pauses_grow_until_the_budget_is_spent_and_progress_refills_it(run_dir: Path) -> None:
    slurm_says(run_dir, "NODE_FAIL|None")
    first = decide(run_dir, now=0.0)
    assert first is not None
    resubmitted(run_dir, first, 2)
    last = json.loads((run_dir / "ledger.jsonl").read_text().splitlines()[-1])["time"]

    soon, later = decide(run_dir, now=last + 100), decide(run_dir, now=last + 121)
    assert soon is not None
    assert later is not None
    assert (soon.resubmit, later.resubmit) == (False, True)
    assert time.strftime("waits until %H:%M:%S ", time.localtime(last + 120)) in soon.why

    resubmitted(run_dir, first, 3)
    spent = decide(run_dir, now=last + 1e6)
    assert spent is not None
    assert not spent.resubmit
    assert "5 times for node_failure without progress" in spent.why

    (run_dir / "checkpoints" / layout.name_of(3)).mkdir(parents=True)
    again = decide(run_dir, now=last + 1e6)
    assert again is not None
    assert again.resubmit


def test_each_shard_is_progress(run_dir: Path) -> None:
    Request("proposals", [Stage("shards", "a-1")], submitted=1.0, id="r").save(run_dir)
    write_json(
        run_dir / "jobs.json", {"request": "r", "jobs": [{"stage": "shards", "run": "a-1", "id": "7"}]}
    )
    slurm_says(run_dir, "FAILED|NonZeroExitCode")
    first = decide(run_dir, now=0.0)
    assert first is not None
    resubmitted(run_dir, first, times=5)
    spent = decide(run_dir, now=0.0)
    assert spent is not None
    assert not spent.resubmit

    (run_dir / "shards").mkdir()
    (run_dir / "shards" / "shard-00000.json").write_text("{}")

    refilled = decide(run_dir, now=0.0)
    assert refilled is not None
    assert refilled.resubmit


def test_a_node_that_failed_its_preflight_is_left_out_if_slurm_still_has_it(run_dir: Path) -> None:
    slurm_says(run_dir, "FAILED|NonZeroExitCode")
    ended(run_dir, 1, "node_failure")
    program = run_dir.parents[1] / "bin" / "sinfo"
    program.write_text("#!/bin/sh\necho node1\necho node2\n")
    program.chmod(0o755)
    attempt = read_attempts(run_dir)[0]
    for host in ("node2", "node9"):
        failed_preflight(run_dir, attempt, host, "cuda:0: wrong", NullObserver())

    decision = decide(run_dir, now=0.0)

    assert decision is not None
    assert decision.resubmit
    assert decision.without == ("node2",)
    assert decision.why == "resubmitted in train: node_failure; without node2"
