"""A run whose machine is gone, such as one that was copied to another."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import slurm
from jobs.attempts import attempt, living_attempts, read_attempts, start_ticks
from jobs.config import Config, PathsConfig, RunHeader, RunKind, store
from jobs.outcomes import write_json
from launcher.errors import RefusedError
from launcher.runs import Owner
from launcher.takeover import take_over
from univip.config import DataConfig


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run and its boxes."""
    config = Config(data=DataConfig(root="data"), paths=PathsConfig(runs=str(tmp_path)))
    for name, kind, boxes in (("boxes", RunKind.proposals, ""), ("run", RunKind.train, "boxes")):
        (tmp_path / name).mkdir()
        store(config, RunHeader(name, kind, "f" * 64, 3, boxes), tmp_path / name)
    return tmp_path / "run"


def supervise(run_dir: Path, host: str) -> None:
    process = {"pid": os.getpid(), "host": host, "start_ticks": start_ticks(os.getpid())}
    write_json(run_dir / "supervisor.json", {**process, "request": "r", "stages": [], "outcome": ""})


def die_elsewhere(run_dir: Path, *, job_id: str = "") -> None:
    """Leave an attempt that says nothing of its end."""
    with attempt(run_dir, "train") as theirs:
        pass
    theirs.host, theirs.ended, theirs.slurm_job_id = "elsewhere", None, job_id
    theirs.save(run_dir)


def test_what_died_elsewhere_is_ended_and_the_run_is_free(run_dir: Path) -> None:
    supervise(run_dir, "there")
    for folder in (run_dir, run_dir.parent / "boxes"):
        die_elsewhere(folder)

    assert take_over(run_dir) == ["elsewhere", "there"]

    for folder in (run_dir, run_dir.parent / "boxes"):
        assert living_attempts(folder) == []
        [theirs] = read_attempts(folder)
        assert (theirs.exit_code, theirs.cause) == (None, "unknown")
        assert theirs.message == f"taken over from elsewhere by {socket.gethostname()}"
    owner = Owner.load(run_dir)
    assert owner is not None
    assert not owner.is_alive()
    with attempt(run_dir, "train"):
        pass


def test_a_job_of_a_cluster_that_is_not_here_is_ended_too(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "is_on_nodes", lambda job_id, restart: None)
    die_elsewhere(run_dir, job_id="7")

    assert take_over(run_dir) == ["elsewhere"]
    assert living_attempts(run_dir) == []


def own(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervise(run_dir, socket.gethostname())


def run_in_slurm(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "is_on_nodes", lambda job_id, restart: True)
    die_elsewhere(run_dir, job_id="7")


@pytest.mark.parametrize("make_alive", [own, run_in_slurm])
def test_what_lives_is_not_taken_over(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, make_alive: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    make_alive(run_dir, monkeypatch)
    before = {path: path.read_text() for path in run_dir.rglob("*.json")}

    with pytest.raises(RefusedError, match="must not be running, but is") as refused:
        take_over(run_dir)
    assert refused.value.fix == f"univip cancel {run_dir}"

    assert {path: path.read_text() for path in run_dir.rglob("*.json")} == before


def test_of_nobody_nothing_is_taken(run_dir: Path) -> None:
    with attempt(run_dir, "train"):
        pass
    before = json.loads((run_dir / "attempts" / "0001" / "attempt.json").read_text())

    assert take_over(run_dir) == []
    assert json.loads((run_dir / "attempts" / "0001" / "attempt.json").read_text()) == before
