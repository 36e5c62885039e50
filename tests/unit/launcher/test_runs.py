import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

import pytest

from jobs.attempts import start_ticks
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import write_json
from jobs.requests import Request, Stage
from launcher.errors import RefusedError, RunNotFoundError
from launcher.runs import all_runs, find_run
from launcher.states import State, read_state
from univip.config import DataConfig

OTHER = 12345  # a user
DEAD = {"host": socket.gethostname(), "pid": 2**22 + 1, "start_ticks": 1}
ALIVE = {"host": socket.gethostname(), "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIVIP_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make_run(root: Path, name: str, *, submitted: float = 0.0) -> Path:
    run_dir = root / name
    run_dir.mkdir(parents=True)
    header = RunHeader(name, RunKind.train, "f" * 64, 10, "proposals-1")
    store(Config(data=DataConfig(root="/x")), header, run_dir)
    if submitted:
        stages = [Stage("merge", "proposals-1"), Stage("train", name), Stage("evaluate", name)]
        Request("pipeline", stages, submitted=submitted).save(run_dir)
    return run_dir


def make_attempt(
    run_dir: Path,
    stage: str,
    *,
    exit_code: int | None,
    owner: dict[str, object] = DEAD,
    cause: str = "",
    message: str = "",
) -> None:
    number = len(list((run_dir / "attempts").glob("*"))) + 1
    folder = run_dir / "attempts" / f"{number:04d}"
    folder.mkdir(parents=True)
    ended = None if exit_code is None else time.time()
    cause = cause or ("done" if exit_code == 0 else "crash")
    own = {"number": number, "stage": stage, "slurm_job_id": "", "started": time.time(), **owner}
    end = {"ended": ended, "exit_code": exit_code, "cause": cause, "message": message}
    write_json(folder / "attempt.json", {**own, **end})


def supervise(run_dir: Path, owner: dict[str, object], outcome: str, stages: list[dict[str, str]]) -> None:
    request = Request.load(run_dir)
    assert request is not None
    document = {**owner, "request": request.id, "outcome": outcome, "stages": stages}
    write_json(run_dir / "supervisor.json", document)


def test_a_name_is_an_id_a_beginning_or_a_path(root: Path) -> None:
    run_dir = make_run(root, "coco_univip-01234567")
    make_run(root, "coco_byol-01234567")

    for name in ("coco_univip-01234567", "coco_u", str(run_dir), os.path.relpath(run_dir)):
        assert find_run(name) == run_dir


def test_last_is_the_run_submitted_last(root: Path) -> None:
    make_run(root, "b-1", submitted=200.0)
    make_run(root, "a-1", submitted=100.0)
    make_run(root, "proposals-1")  # made on the way, never asked for

    assert find_run("@last").name == "b-1"
    assert [run.name for run in all_runs(root)] == ["proposals-1", "a-1", "b-1"]


def test_an_exact_name_wins_over_a_longer_one(root: Path) -> None:
    make_run(root, "demo-1")
    make_run(root, "demo-12")

    assert find_run("demo-1").name == "demo-1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("coco", "must name one run, but names 2: coco_"),
        ("coko_univip", "the nearest are coco_univip-1"),
        ("x" * 300, "but names none"),  # longer than a file may be called
        ("a\nb", r"`a\\nb` must name a run"),
        ("\x1b[31m", r"`\\x1b\[31m` must name a run"),
    ],
)
def test_a_name_of_no_run_or_several_is_refused_with_help(root: Path, name: str, message: str) -> None:
    make_run(root, "coco_univip-1")
    make_run(root, "coco_byol-1")

    with pytest.raises(RunNotFoundError, match=message):
        find_run(name)


def test_nothing_is_no_beginning_of_the_only_run(root: Path) -> None:
    """As of a variable of the shell that is not set: `univip cancel "$RUN"`."""
    make_run(root, "coco_univip-1")

    with pytest.raises(RunNotFoundError, match="`` must name a run, but names none"):
        find_run("")


@pytest.mark.parametrize("name", ["@last", "demo"])
def test_without_any_run_it_says_so(root: Path, name: str) -> None:
    with pytest.raises(RunNotFoundError, match="there is no run yet"):
        find_run(name)


def test_a_run_whose_stages_are_done_is_done(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=0)
    make_attempt(run_dir, "train", exit_code=0)
    make_attempt(run_dir, "evaluate", exit_code=0)

    state = read_state(run_dir)

    assert (state.state, state.stage, state.attempt) == (State.done, "", 2)


def test_a_run_with_a_living_supervisor_runs(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    supervise(run_dir, ALIVE, "", [])

    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.running, "merge")


def test_a_run_with_a_living_attempt_runs(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=0)
    make_attempt(run_dir, "train", exit_code=None, owner=ALIVE)

    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.running, "train")


def test_a_reused_pid_is_not_the_owner(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    supervise(run_dir, {**ALIVE, "start_ticks": 1}, "", [])

    assert read_state(run_dir).state is State.stopped


def test_a_run_whose_processes_vanished_is_stopped(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=0)
    make_attempt(run_dir, "train", exit_code=None)
    supervise(run_dir, DEAD, "", [{"state": "running", "cause": ""}])

    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.stopped, "train")


@pytest.mark.parametrize(
    ("outcome", "state", "cause"), [("failed", State.failed, "refused"), ("cancelled", State.cancelled, "")]
)
def test_a_run_ends_as_its_supervisor_says(root: Path, outcome: str, state: State, cause: str) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    supervise(run_dir, DEAD, outcome, [{"state": "failed" if cause else "cancelled", "cause": cause}])

    assert (read_state(run_dir).state, read_state(run_dir).cause) == (state, cause)


def test_a_run_evaluated_before_its_last_training_waits_to_be_resumed(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=0)
    for stage in ("train", "evaluate", "train"):
        make_attempt(run_dir, stage, exit_code=0)
    supervise(run_dir, DEAD, "done", [{"state": "done", "cause": ""}])

    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.stopped, "evaluate")


def test_a_stage_tells_more_of_its_failure_than_its_supervisor(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=76, cause="full_disk", message="no room\n  fix: rm")
    supervise(run_dir, DEAD, "failed", [{"state": "failed", "cause": "nonfinite"}])

    state = read_state(run_dir)

    assert (state.state, state.cause, state.message) == (State.failed, "full_disk", "no room\n  fix: rm")


def test_a_process_that_was_refused_does_not_make_a_run_fail(root: Path) -> None:
    run_dir = make_run(root, "a-1", submitted=1.0)
    make_attempt(root / "proposals-1", "merge", exit_code=75, cause="stopped")
    make_attempt(root / "proposals-1", "merge", exit_code=5, cause="busy")

    assert (read_state(run_dir).state, read_state(run_dir).cause) == (State.stopped, "")


def test_boxes_made_on_the_way_have_a_state_of_their_own(root: Path) -> None:
    run_dir = make_run(root, "proposals-1")
    make_attempt(run_dir, "prepare", exit_code=0)
    make_attempt(run_dir, "shards", exit_code=None, owner=ALIVE)
    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.running, "shards")

    make_attempt(run_dir, "merge", exit_code=0)

    assert read_state(run_dir).state is State.done


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_the_private_run_of_another_user_hides_itself_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = Path(tempfile.mkdtemp())  # not `tmp_path`, which nobody else may enter
    try:
        for name in ("coco-1", "coco-2"):
            (root / name).mkdir()
            store(Config(data=DataConfig(root="/x")), RunHeader(name, RunKind.train, "f", 1), root / name)
        (root / "coco-1").chmod(0o700)
        root.chmod(0o755)
        monkeypatch.setenv("UNIVIP_RUNS", str(root))
        os.setresuid(OTHER, OTHER, 0)

        assert [run.name for run in all_runs(root)] == ["coco-2"]
        assert find_run("coco").name == "coco-2"
        with pytest.raises(RefusedError, match="is private") as refused:
            find_run("coco-1")
        assert "--fork" in refused.value.fix
    finally:
        os.setresuid(0, 0, 0)
        shutil.rmtree(root)
