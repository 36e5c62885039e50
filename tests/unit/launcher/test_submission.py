import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from jobs.attempts import attempt, start_ticks
from jobs.compose import compose
from jobs.config import Config, load
from jobs.outcomes import write_json
from jobs.requests import Request
from launcher import submission
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.plan import make_plan
from launcher.submission import submit
from univip.errors import ConfigError


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


def own(run_dir: Path) -> None:
    """Pretend that this process supervises the run."""
    request = Request.load(run_dir)
    assert request is not None
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "start_ticks": start_ticks(os.getpid())}
    write_json(run_dir / "supervisor.json", {**owner, "request": request.id, "stages": [], "outcome": ""})


def finish(run_dir: Path, *kinds: str) -> None:
    for kind in kinds:
        with attempt(run_dir, kind) as mine:
            mine.exit_code = 0


def test_a_new_run_gets_its_files_and_a_supervisor(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)

    done = submit(plan, ["debug=small", "train.seed=0"])

    assert started == [plan.run_dir]
    assert done.is_new
    assert done.jobs == [("local", "42")]
    assert load(plan.run_dir) == config
    assert (plan.run_dir / "overrides.txt").read_text() == "debug=small\ntrain.seed=0\n"
    environment = json.loads((plan.run_dir / "environment.json").read_text())
    assert environment["packages"]["univip"] != "absent"
    boxes = plan.run_dir.parent / plan.header.proposals
    assert load(boxes) == config


@pytest.mark.parametrize(("mode", "expected"), [("700", 0o700), ("750", 0o750)])
def test_directories_are_private_unless_the_configuration_opens_them(
    config: Config, started: list[Path], mode: str, expected: int
) -> None:
    before = os.umask(0o022)
    try:
        config = replace(config, paths=replace(config.paths, mode=mode))
        run_dir = submit(make_plan("pipeline", config), []).run_dir
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)

    assert stat.S_IMODE(run_dir.stat().st_mode) == expected
    assert stat.S_IMODE((run_dir / "config.yaml").stat().st_mode) == expected & 0o666


def test_a_running_run_is_reported_and_not_started_twice(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    own(run_dir)

    again = submit(make_plan("pipeline", config), [])

    assert len(started) == 1
    assert not again.is_new
    assert f"already running: process {os.getpid()}" in again.message


def test_a_stage_that_outlived_its_supervisor_still_owns_the_run(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir

    with attempt(run_dir, "train"):
        again = submit(make_plan("pipeline", config), [])

    assert "already running: attempt 1" in again.message


def test_a_stopped_run_is_resumed(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    with attempt(run_dir, "train") as mine:
        mine.exit_code = 75

    again = submit(make_plan("pipeline", config), [])

    assert again.message == "resumed"
    assert len(started) == 2


def test_a_finished_run_is_reported(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    finish(run_dir.parent / plan.header.proposals, "prepare", "shards", "merge")
    finish(run_dir, "train", "evaluate")

    again = submit(make_plan("pipeline", config), [])

    assert (again.is_new, again.message) == (False, "done already")
    assert len(started) == 1


def test_a_finished_run_can_be_evaluated_again(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    finish(run_dir.parent / plan.header.proposals, "prepare", "shards", "merge")
    finish(run_dir, "train", "evaluate")
    other = replace(config, evaluate=replace(config.evaluate, neighbours=3))

    again = submit(make_plan("evaluate", other), [])

    assert again.is_new
    assert again.run_dir == run_dir
    assert load(run_dir).evaluate.neighbours == 3


def test_resuming_takes_the_site_from_the_request_and_the_rest_from_the_run(
    config: Config, started: list[Path]
) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    stored = (run_dir / "config.yaml").read_text()
    # As a release with another default would have stored it.
    (run_dir / "config.yaml").write_text(stored.replace("sinkhorn_iterations: 50", "sinkhorn_iterations: 49"))
    other = replace(config, cluster=replace(config.cluster, workers_per_node=2))

    assert submit(make_plan("pipeline", other), []).run_dir == run_dir

    assert load(run_dir).method.sinkhorn_iterations == 49
    assert load(run_dir).cluster.workers_per_node == 2


def test_training_alone_needs_boxes(config: Config, started: list[Path]) -> None:
    plan = make_plan("train", config)

    with pytest.raises(RefusedError, match="must be made before training"):
        submit(plan, [])
    assert started == []

    boxes = plan.run_dir.parent / plan.header.proposals
    boxes.mkdir()
    finish(boxes, "merge")
    assert submit(make_plan("train", config), []).is_new


def test_a_folder_that_cannot_be_written_is_named(config: Config, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(ConfigError, match=r"`paths\.runs` must be a folder that can be written"):
        submit(make_plan("pipeline", config), [])


def test_the_run_of_another_user_is_not_resumed(
    config: Config, started: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(make_plan("pipeline", config), [])
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)

    with pytest.raises(RefusedError, match="must be yours to resume"):
        submit(make_plan("pipeline", config), [])


def test_a_run_made_for_other_photographs_is_not_overwritten(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    stored = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(stored.replace("fingerprint: ", "fingerprint: 0"))

    with pytest.raises(RefusedError, match="must be of these photographs"):
        submit(make_plan("pipeline", config), [])


def test_without_slurm_nothing_is_submitted_and_it_says_so(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    config = compose(
        [
            f"data.root='{config.data.root}'",
            "data=folder",
            f"paths.runs='{config.paths.runs}'",
            "cluster=slurm",
        ]
    )

    with pytest.raises(SlurmUnavailableError, match="SLURM must accept the jobs"):
        submit(make_plan("pipeline", config), [])


# One shell: its supervisor is the shell itself, which lives on until it may end.
SHELL = """
import os, socket, sys, time
from pathlib import Path
from jobs.attempts import start_ticks
from jobs.compose import compose
from jobs.outcomes import write_json
from launcher import submission
from launcher.plan import make_plan

def start(run_dir, request_id):
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "start_ticks": start_ticks(os.getpid())}
    document = {**owner, "request": request_id, "stages": [], "outcome": ""}
    write_json(run_dir / "supervisor.json", document)
    return os.getpid()

submission.start_local = start
barrier, *overrides = sys.argv[1:]
plan = make_plan("pipeline", compose(overrides))
print("ready", flush=True)
sys.stdin.readline()
print(submission.submit(plan, []).is_new, flush=True)
sys.stdin.readline()
"""


def test_of_several_shells_that_submit_at_once_one_starts_the_run(config: Config) -> None:
    overrides = [f"data.root='{config.data.root}'", "data=folder", f"paths.runs='{config.paths.runs}'"]
    command = [sys.executable, "-c", SHELL, "-", *overrides]
    shells = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]

    def ask(shell: "subprocess.Popen[str]") -> str:
        assert shell.stdout is not None
        return shell.stdout.readline().strip()

    def answer(shell: "subprocess.Popen[str]") -> None:
        assert shell.stdin is not None
        shell.stdin.write("\n")
        shell.stdin.flush()

    assert [ask(shell) for shell in shells] == ["ready"] * 4
    for shell in shells:
        answer(shell)
    started = [ask(shell) for shell in shells]
    for shell in shells:
        shell.communicate("\n", timeout=20)

    assert sorted(started) == ["False"] * 3 + ["True"]
