"""Real requests on this machine: submitit's local executor, the supervisor, and the stages as processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest

from jobs.outcomes import write_json
from launcher import local
from launcher.errors import RefusedError
from launcher.runs import Owner
from launcher.states import State, read_state
from univip.errors import UnivipError

ROOT = Path(__file__).resolve().parents[3]
UNIVIP = [sys.executable, "-m", "launcher.cli.main"]


@pytest.fixture
def request_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that makes boxes for three photographs; what it started is ended with the test."""
    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path / "my runs"))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(3):
        PIL.Image.effect_noise((90, 80), 50 + number).save(photographs / f"{number}.png")
    data = ["data=folder", f"data.root='{photographs}'", "data.workers=0"]
    return [*UNIVIP, "submit", "proposals", *data, "proposals.mode=single", "proposals.processes=1"]


def wait_for(run_dir: Path, state: State) -> None:
    deadline = time.monotonic() + 60
    while read_state(run_dir).state is not state:
        assert time.monotonic() < deadline, read_state(run_dir)
        time.sleep(0.1)


def test_a_request_goes_on_when_the_terminal_that_waits_for_it_is_interrupted(
    request_boxes: list[str], tmp_path: Path
) -> None:
    # A session of its own stands for the terminal: Ctrl-C reaches every process of its foreground group.
    with subprocess.Popen(
        [*request_boxes, "--wait", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as terminal:
        assert terminal.stdout is not None
        assert terminal.stderr is not None
        told = json.loads(terminal.stdout.readline())

        os.killpg(terminal.pid, signal.SIGINT)

        assert terminal.wait(20) == 130
        assert f"univip logs {told['run']} -f" in terminal.stderr.read()
    run_dir = Path(told["run_dir"])
    assert run_dir.parent == tmp_path / "my runs"
    wait_for(run_dir, State.done)
    assert (run_dir / "proposals.arrow").exists()

    again = subprocess.run([*request_boxes, "--wait"], capture_output=True, text=True, check=False)

    assert again.returncode == 0
    assert "done already" in again.stderr
    assert again.stdout.splitlines()[-1] == told["run"]


def test_a_checkout_that_is_edited_after_the_submission_changes_nothing(
    request_boxes: list[str], tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("univip", "jobs", "launcher", "monitoring", "configs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [*request_boxes, "--json"]
    told = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)

    for path in checkout.rglob(
        "*.py"
    ):  # each stage is a process of its own, and two of them begin after this
        path.write_text("raise SystemExit('the code of a later day')\n")

    run_dir = Path(json.loads(told.stdout)["run_dir"])
    wait_for(run_dir, State.done)
    assert "later day" not in "".join(path.read_text() for path in (run_dir / "logs").glob("*.log"))


def test_waiting_for_a_request_that_fails_ends_with_1_and_the_reason(
    request_boxes: list[str], tmp_path: Path
) -> None:
    for path in (tmp_path / "photographs").iterdir():
        path.write_bytes(path.read_bytes()[:200])  # the header is whole, the pixels are not

    done = subprocess.run([*request_boxes, "--wait"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "failed in shards: refused" in done.stderr
    assert "at least one of the 3 images must be usable" in done.stderr


def test_a_cancelled_request_stops_and_is_resumed_to_the_end(
    request_boxes: list[str], tmp_path: Path
) -> None:
    started = subprocess.run([*request_boxes, "--json"], capture_output=True, text=True, check=True)
    told = json.loads(started.stdout)
    run_dir = Path(told["run_dir"])
    owner = Owner.load(run_dir)
    assert owner is not None
    assert told["jobs"] == [{"stage": "local", "id": str(owner.pid)}]

    subprocess.run([*UNIVIP, "cancel", told["run"]], check=True, capture_output=True)
    wait_for(run_dir, State.cancelled)
    resumed = subprocess.run(
        [*UNIVIP, "resume", told["run"], "--wait"], capture_output=True, text=True, check=False
    )

    assert resumed.returncode == 0, resumed.stderr
    assert read_state(run_dir).state is State.done


def test_what_is_said_of_a_supervisor_that_does_not_start_names_the_run_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "my runs" / "a-1"
    run_dir.mkdir(parents=True)
    monkeypatch.setattr(local.subprocess, "run", lambda *_, **__: None)
    with pytest.raises(UnivipError, match="must start, but did not") as failed:
        local.start_local(run_dir, "mine", tmp_path)
    assert failed.value.fix == f"univip logs '{run_dir}'"

    process = {"pid": 7, "host": "elsewhere", "start_ticks": 1}
    write_json(run_dir / "supervisor.json", {**process, "request": "theirs", "stages": [], "outcome": ""})
    with pytest.raises(RefusedError, match="process 7 on elsewhere") as refused:
        local.start_local(run_dir, "mine", tmp_path)
    assert refused.value.fix == f"univip logs '{run_dir}' -f"
