"""What the tests of submissions share: a request, what it would start, and a run that got half-way."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from jobs.attempts import attempt, start_ticks
from jobs.compose import compose
from jobs.config import Config
from jobs.outcomes import write_json
from jobs.requests import Request
from launcher import submission
from launcher.plan import make_plan
from launcher.submission import submit
from univip.checkpoint import layout


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

    def start(run_dir: Path, request_id: str) -> int:
        found.append(run_dir)
        return 42

    monkeypatch.setattr(submission, "start_local", start)
    return found


@pytest.fixture
def own() -> Callable[[Path], None]:
    """Pretends that this process supervises a run."""

    def own(run_dir: Path) -> None:
        request = Request.load(run_dir)
        assert request is not None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "start_ticks": start_ticks(os.getpid())}
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
