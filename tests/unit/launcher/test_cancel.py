"""`cancel`: what it asks to stop, and what of it others still wait for."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.attempts import attempt, start_ticks
from jobs.outcomes import write_json
from jobs.requests import Request, Stage
from launcher.cli.main import run


@pytest.fixture
def slurm(tmp_path: Path, stand_ins: Callable[[dict[str, str]], Path]) -> Path:
    """Three jobs wait; what is cancelled is written down, and what was seen then."""
    return stand_ins(
        {
            "squeue": "for job in '17|PENDING|Priority' '18|PENDING|Dependency' '20|PENDING|Dependency'; do "
            'echo "$job"; done',
            "scancel": f'echo "$@" >> asked; ls {tmp_path}/runs/* > seen',
        }
    )


def submitted(run_dir: Path, boxes: Path, train: str, shards: str = "17") -> None:
    """Jobs of a pipeline: shards of boxes that may be shared, and a training of its own."""
    request = Request("pipeline", [Stage("shards", boxes.name), Stage("train", run_dir.name)])
    request.save(run_dir)
    jobs = [
        {"stage": "shards", "run": boxes.name, "id": shards},
        {"stage": "train", "run": run_dir.name, "id": train},
    ]
    write_json(run_dir / "jobs.json", {"request": request.id, "jobs": jobs})
    boxes.mkdir(exist_ok=True)
    write_json(boxes / "jobs.json", {"request": request.id, "jobs": jobs[:1]})


@pytest.mark.parametrize(("arguments", "number"), [([], signal.SIGTERM), (["--now"], signal.SIGINT)])
def test_cancel_asks_the_supervisor(
    run_dir: Path, own: Callable[..., None], arguments: list[str], number: int
) -> None:
    with subprocess.Popen(["sleep", "60"]) as owner:
        own(run_dir, owner.pid)

        assert run(["cancel", "@last", *arguments]) == 0

        assert owner.wait(10) == -number


def test_cancel_stops_a_stage_whose_supervisor_died(run_dir: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as stage:
        folder = run_dir / "attempts" / "0001"
        folder.mkdir(parents=True)
        own = {"number": 1, "stage": "train", "slurm_job_id": "", "started": time.time()}
        owner = {"host": socket.gethostname(), "pid": stage.pid, "start_ticks": start_ticks(stage.pid)}
        write_json(folder / "attempt.json", {**own, **owner})

        assert run(["cancel", "@last"]) == 0

        assert stage.wait(10) == -signal.SIGTERM


def test_a_run_on_another_machine_is_cancelled_there(
    run_dir: Path, own: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    own(run_dir, os.getpid(), host="elsewhere")

    assert run(["cancel", "@last"]) == 5

    assert "ssh elsewhere univip cancel" in capsys.readouterr().err


def test_cancelling_what_does_not_run_is_no_error(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cancel", "@last"]) == 0

    assert "is not running" in capsys.readouterr().err


def test_cancelling_on_slurm_marks_the_run_and_its_boxes_first(run_dir: Path, slurm: Path) -> None:
    boxes = run_dir.parent / "proposals-1"
    submitted(run_dir, boxes, "18")

    assert run(["cancel", "@last"]) == 0

    assert (slurm / "asked").read_text().splitlines() == [
        "--quiet --state=PENDING 17 18",
        "--quiet --state=SUSPENDED 17 18",
        "--quiet --state=RUNNING --signal=USR2 17 18",
    ]
    assert (slurm / "seen").read_text().split().count("cancelled") == 2
    assert run(["status", "--json"]) == 0


def test_cancelling_leaves_boxes_that_another_run_waits_for(
    run_dir: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes, other = run_dir.parent / "proposals-1", run_dir.parent / "other-1"
    shutil.copytree(run_dir, other)
    submitted(run_dir, boxes, "18")
    submitted(other, boxes, "20")

    assert run(["cancel", run_dir.name]) == 0

    assert (slurm / "asked").read_text().splitlines()[0] == "--quiet --state=PENDING 18"
    assert (run_dir / "cancelled").exists()
    assert not (boxes / "cancelled").exists()
    assert "made for other runs as well" in capsys.readouterr().err


def test_a_cancel_that_slurm_does_not_carry_out_changes_nothing(
    run_dir: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run_dir, run_dir.parent / "proposals-1", "18")
    (slurm / "scancel").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")

    assert run(["cancel", "@last"]) == 4

    assert "no controller" in capsys.readouterr().err
    assert not list(run_dir.parent.glob("*/cancelled"))


def test_what_is_done_is_not_cancelled(
    run_dir: Path, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(run_dir, run_dir.parent / "proposals-1", "18")
    request = Request.load(run_dir)
    assert request is not None
    for stage in request.stages:
        with attempt(run_dir.parent / stage.run, stage.kind) as mine:
            mine.exit_code = 0

    assert run(["cancel", "@last"]) == 0

    assert "is done already" in capsys.readouterr().err
    assert not (slurm / "asked").exists()
