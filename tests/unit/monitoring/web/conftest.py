"""Runs with a past, written through the journal itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitoring import journal
from monitoring.journal import Journal

START = 1_800_000_000.0


class Writer:
    """A run directory, a clock, and what happens on it."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir = run_dir
        (run_dir / "attempts").mkdir(parents=True)
        (run_dir / "config.yaml").write_text("train:\n  seed: 3\n")
        self.now = START
        self.images = 0
        monkeypatch.setattr(journal.time, "time", lambda: self.now)

    def attempt(self, number: int, started: float, ended: float | None, cause: str = "", **more: Any) -> None:
        """What `attempts/NNNN/attempt.json` says; times count from the start."""
        folder = self.run_dir / "attempts" / f"{number:04d}"
        folder.mkdir(exist_ok=True)
        document = {
            "number": number,
            "stage": "train",
            "host": "node1",
            "slurm_job_id": "17",
            "started": START + started,
            "ended": None if ended is None else START + ended,
            "exit_code": {"": None, "done": 0, "stopped": 75}.get(cause, 1),
            "cause": cause,
            "message": "",
            **more,
        }
        (folder / "attempt.json").write_text(json.dumps(document))

    def steps(self, journal: Journal, first: int, last: int, every: int = 10, **fields: Any) -> None:
        """One step a second, a record every so many."""
        for data_step in range(first, last + 1, every):
            self.now += every
            self.images += 8 * every
            loss = fields.pop("loss", 10.0 - data_step / 100)
            journal.record(
                "step",
                step=data_step,
                data_step=data_step,
                loss=loss,
                loss_min=loss,
                loss_max=loss,
                terms={"scene": loss / 2, "instance": loss / 2},
                lr=0.1,
                gradient_norm=1.0,
                images=self.images,
                steps=data_step,
                seconds=self.images / 8,
                phases={"data": self.images / 16, "forward": self.images / 16},
                statistics={"embedding_std_online": 0.9},
                counts={"images": self.images, "too_small": 1},
                target=1000,
                **fields,
            )


@pytest.fixture
def new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Writer]:
    return lambda name: Writer(tmp_path / "runs" / name, monkeypatch)


@pytest.fixture
def eventful(new_run: Callable[[str], Writer]) -> Writer:
    """A NaN, a rollback, a killed worker, a time limit, a full disk, a damaged checkpoint; then the end."""
    run = new_run("coco_univip-0a1b2c3d")
    with Journal(run.run_dir, attempt=1) as first:
        first.record("round", world_size=2)
        first.record("run", state="training", experiment="coco_univip", method="univip", num_images=640)
        run.steps(first, 10, 100)
        first.record(
            "checkpoint", data_step=100, outcome="success", bytes=5e6, blocked_s=0.1, background_s=1.0
        )
        first.record("skip", data_step=104, where="loss", reason="nonfinite", what="loss")
        run.steps(first, 110, 110, loss=float("nan"))
        run.steps(first, 120, 150)
        first.record(
            "rollback",
            data_step=155,
            target=100,
            window_start=150,
            window_stop=156,
            steps_discarded=55,
            where="state",
            reason="nonfinite",
        )
        run.now += 5
        first.record("restore", data_step=100, checkpoint="step-000000100", seconds=4.0, passed_over={})
        run.steps(first, 110, 200)
        first.record("checkpoint", data_step=200, outcome="failure", what="disk full", blocked_s=0.1)
    with Journal(run.run_dir, attempt=1, rank=1) as other:
        other.record("restore", data_step=100, checkpoint="step-000000100", seconds=4.0, passed_over={})
    run.now += 1
    with Journal(run.run_dir, attempt=1, source="agent0") as agent:
        agent.record("restart", cause="killed", message="rank 1 ended")
    with Journal(run.run_dir, attempt=1, round=1) as second:
        second.record("round", world_size=2)
        second.record("corruption", checkpoint="step-000000200", what="checksum")
        run.now += 20
        second.record("restore", data_step=100, checkpoint="step-000000100", seconds=4.0, passed_over={})
        run.steps(second, 110, 300)
        second.record(
            "checkpoint", data_step=300, outcome="success", bytes=5e6, blocked_s=0.1, background_s=1.0
        )
    run.attempt(1, 0, run.now - START, "stopped")
    run.now += 1000
    started = run.now - START
    with Journal(run.run_dir, attempt=2) as third:
        third.record("round", world_size=2)
        run.now += 10
        third.record("restore", data_step=300, checkpoint="step-000000300", seconds=4.0, passed_over={})
        run.steps(third, 310, 400)
        third.record("image_failed", image_id=1, path="a.jpg", reason="corrupt")
    run.attempt(2, started, run.now - START, "done")
    return run
