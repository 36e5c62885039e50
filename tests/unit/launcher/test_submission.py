import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.attempts import attempt
from jobs.compose import compose
from jobs.config import Config, load
from jobs.outcomes import write_json
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.follow import follow
from launcher.plan import make_plan, plan_again
from launcher.states import State, read_state
from launcher.submission import submit
from univip.checkpoint import layout
from univip.config import MethodConfig
from univip.errors import ConfigError


def finish(run_dir: Path, *kinds: str) -> None:
    for kind in kinds:
        with attempt(run_dir, kind) as mine:
            mine.exit_code = 0


def save_checkpoint(run_dir: Path) -> None:
    (run_dir / "checkpoints" / layout.name_of(3)).mkdir(parents=True)


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
    assert stat.S_IMODE((run_dir / "request.json").stat().st_mode) == expected & 0o666
    assert stat.S_IMODE(run_dir.parent.stat().st_mode) == 0o755  # others have runs there, too


def test_a_running_run_is_reported_and_not_started_twice(
    config: Config, started: list[Path], own: Callable[[Path], None]
) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    own(run_dir)

    again = submit(make_plan("pipeline", config), [])

    assert len(started) == 1
    assert not again.is_new
    assert f"already running: process {os.getpid()}" in again.message


def test_a_stage_that_outlived_its_supervisor_is_left_to_the_next_one(
    config: Config, started: list[Path]
) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir

    with attempt(run_dir, "train"):
        again = submit(make_plan("pipeline", config), [])

    assert (again.is_new, again.message) == (True, "resumed")
    assert len(started) == 2


def test_a_stage_on_another_machine_owns_the_run(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir

    with attempt(run_dir, "train") as theirs:
        theirs.host = "elsewhere"
        theirs.save(run_dir)
        again = submit(make_plan("pipeline", config), [])

    assert not again.is_new
    assert "already running: attempt 1" in again.message
    assert len(started) == 1


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
    otherwise = replace(config, evaluate=replace(config.evaluate, neighbours=7))
    before = config.evaluate.neighbours
    told = submit(make_plan("pipeline", otherwise), []).message
    assert told == f"done already; not taken up: evaluate.neighbours=7, which is {before}"


def test_a_finished_run_can_be_evaluated_again(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    finish(run_dir.parent / plan.header.proposals, "prepare", "shards", "merge")
    finish(run_dir, "train", "evaluate")
    save_checkpoint(run_dir)
    other = replace(config, evaluate=replace(config.evaluate, neighbours=3))

    again = submit(make_plan("evaluate", other), [])

    assert again.is_new
    assert again.run_dir == run_dir
    assert load(run_dir).evaluate.neighbours == 3


def test_another_evaluation_is_refused_while_one_runs(
    config: Config, started: list[Path], own: Callable[[Path], None]
) -> None:
    """In a loop over values each would else find the result of the first."""
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    save_checkpoint(run_dir)
    finish(run_dir, "train")
    submit(make_plan("evaluate", config), [])
    own(run_dir)
    assert not submit(make_plan("evaluate", config), []).is_new

    other = replace(config, evaluate=replace(config.evaluate, neighbours=7))
    with pytest.raises(RefusedError, match=r"for an evaluation with other `evaluate\.neighbours`"):
        submit(make_plan("evaluate", other), [])


def test_a_half_trained_run_that_was_evaluated_is_not_done(
    config: Config, started: list[Path], half_trained: Path
) -> None:
    run_dir = half_trained

    submit(make_plan("evaluate", config), [])
    assert read_state(run_dir).stage == "evaluate"
    finish(run_dir, "evaluate")

    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.stopped, "train")
    assert follow(run_dir)  # what was asked for is done


def test_resuming_goes_on_with_the_request_that_an_evaluation_came_between(
    config: Config, started: list[Path], half_trained: Path
) -> None:
    run_dir = half_trained
    for _ in range(2):
        submit(make_plan("evaluate", config), [])
        finish(run_dir, "evaluate")

    plan = plan_again(run_dir)
    assert plan.request.command == "pipeline"
    assert [stage.kind for stage in plan.request.remaining(run_dir.parent)] == ["train", "evaluate"]
    submit(plan, [])
    finish(run_dir, "train")
    assert (read_state(run_dir).state, read_state(run_dir).stage) == (State.stopped, "evaluate")
    finish(run_dir, "evaluate")

    assert read_state(run_dir).state is State.done


def test_without_a_checkpoint_there_is_nothing_to_evaluate(
    config: Config, started: list[Path], tmp_path: Path
) -> None:
    overrides = ["experiment=a b", "data=folder"]
    with pytest.raises(RefusedError, match="must have a checkpoint to evaluate") as refused:
        submit(make_plan("evaluate", config), overrides)
    assert refused.value.fix == "univip submit pipeline 'experiment=a b' data=folder"
    assert not (tmp_path / "runs").exists()

    run_dir = submit(make_plan("pipeline", config), []).run_dir
    with pytest.raises(RefusedError, match="must have a checkpoint to evaluate") as refused:
        submit(make_plan("evaluate", config), overrides)
    assert refused.value.fix == f"univip resume {run_dir}"
    assert len(started) == 1


def test_boxes_that_another_request_works_on_keep_their_configuration(
    config: Config, started: list[Path]
) -> None:
    plan = make_plan("pipeline", config)
    boxes = submit(plan, []).run_dir.parent / plan.header.proposals
    other = replace(config, cluster=replace(config.cluster, partition="b"), method=MethodConfig(momentum=0.5))

    with attempt(boxes, "shards"):
        assert submit(make_plan("pipeline", other), []).is_new
    assert load(boxes) == config

    # Of an element of an array whose node has died: SLURM knows that it is over.
    owner = {"host": "node1", "pid": 1, "start_ticks": 1, "started": 1.0, "slurm_job_id": "7_1"}
    write_json(boxes / "attempts" / "0001" / "attempt.json", {"number": 1, "stage": "shard:1", **owner})
    submit(make_plan("pipeline", other), [])
    assert load(boxes).cluster.partition == "b"


def test_a_new_start_is_not_cancelled_any_more(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)
    run_dir = submit(plan, []).run_dir
    markers = [run_dir / "cancelled", run_dir.parent / plan.header.proposals / "cancelled"]
    for marker in markers:
        marker.touch()

    submit(make_plan("pipeline", config), [])

    assert not any(marker.exists() for marker in markers)


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
    assert not plan.run_dir.parent.exists()

    boxes = plan.run_dir.parent / plan.header.proposals
    boxes.mkdir(parents=True)
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

    with pytest.raises(SlurmUnavailableError, match="must be on the PATH"):
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

def start(run_dir, request_id, code):
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


def test_what_a_run_keeps_of_another_release_is_told(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    stored = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(stored.replace("sinkhorn_iterations: 50", "sinkhorn_iterations: 49"))

    message = submit(make_plan("pipeline", config), []).message

    assert (
        message == "resumed as it was begun, with method.sinkhorn_iterations=49, not 50: --fork begins anew"
    )
