"""What the tests of the command line share: where runs are, a run that was asked for, and one half-way."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from jobs.attempts import attempt, start_ticks
from jobs.compose import compose
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import write_json
from jobs.requests import Request, stages_of
from launcher import submission
from launcher.plan import make_plan
from launcher.submission import submit
from univip.checkpoint import layout
from univip.config import DataConfig


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def run_dir(runs: Path) -> Path:
    """A pipeline that was asked for, of which nothing has begun."""
    run_dir = runs / "univip-1"
    run_dir.mkdir(parents=True)
    store(Config(data=DataConfig(root="/x")), RunHeader("univip-1", RunKind.train, "f", 1), run_dir)
    Request("pipeline", stages_of("pipeline", "univip-1", "")).save(run_dir)
    return run_dir


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Path]:
    """Puts scripts in place of SLURM's commands; returns their folder, which is where they run."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def write(scripts: dict[str, str]) -> Path:
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
            (folder / name).chmod(0o755)
        return folder

    return write


@pytest.fixture
def config(tmp_path: Path) -> Config:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(3):
        PIL.Image.new("RGB", (30 + number, 20)).save(photographs / f"{number}.png")
    overrides = [f"data.root='{photographs}'", "data=folder", f"paths.runs='{tmp_path}/runs'"]
    return compose([*overrides, "debug=small"])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run directories for which a supervisor would have been started."""
    found: list[Path] = []

    def start(run_dir: Path, request_id: str, code: Path) -> int:
        assert (code / "jobs" / "base.py").exists()
        found.append(run_dir)
        return 42

    monkeypatch.setattr(submission, "start_local", start)
    return found


@pytest.fixture
def own() -> Callable[..., None]:
    """Pretends that a process supervises a run: this one, or that named."""

    def own(run_dir: Path, pid: int = os.getpid(), host: str = "") -> None:
        request = Request.load(run_dir)
        assert request is not None
        owner = {"pid": pid, "host": host or socket.gethostname(), "start_ticks": start_ticks(pid)}
        write_json(run_dir / "supervisor.json", {**owner, "request": request.id, "stages": [], "outcome": ""})

    return own


@pytest.fixture
def half_trained(config: Config, started: list[Path]) -> Path:
    """A run whose boxes are made, and whose training has stopped after a checkpoint."""
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    for kind in ("prepare", "shards", "merge"):
        with attempt(run_dir.parent / plan.header.proposals, kind) as mine:
            mine.exit_code = 0
    with attempt(run_dir, "train") as mine:
        mine.exit_code = 75
    (run_dir / "checkpoints" / layout.name_of(3)).mkdir(parents=True)
    return run_dir
