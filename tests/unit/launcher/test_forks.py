"""A run beside the first, and one in its place."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.attempts import attempt
from jobs.config import Config, load_header
from launcher.errors import RefusedError
from launcher.plan import make_plan, plan_again
from launcher.states import State, read_state
from launcher.submission import submit


def test_a_fork_is_a_run_of_its_own_beside_the_first(
    config: Config, started: list[Path], own: Callable[[Path], None]
) -> None:
    first = submit(make_plan("pipeline", config), []).run_dir
    own(first)

    forks = [submit(make_plan("pipeline", config, forks=True), [], forks=True) for _ in range(2)]

    experiment, _, hash8 = first.name.rpartition("-")
    assert [fork.run_dir.name for fork in forks] == [f"{experiment}.fork{n}-{hash8}" for n in (1, 2)]
    assert [fork.message for fork in forks] == ["submitted", "submitted"]
    assert len(started) == 3
    header = load_header(forks[0].run_dir)
    assert (header.id, header.origin) == (forks[0].run_dir.name, first.name)
    assert header.proposals == load_header(first).proposals
    assert {stage.run for stage in plan_again(forks[0].run_dir).request.stages} == {
        header.id,
        header.proposals,
    }


def test_a_fork_of_nothing_is_the_run_itself(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config, forks=True)

    assert plan.header == make_plan("pipeline", config).header
    assert submit(plan, [], forks=True).is_new


def test_of_two_shells_that_fork_at_once_one_is_told_to_try_again(
    config: Config, started: list[Path]
) -> None:
    submit(make_plan("pipeline", config), [])
    plan = make_plan("pipeline", config, forks=True)
    submit(plan, [], forks=True)

    with pytest.raises(RefusedError, match="another shell has just begun it"):
        submit(plan, [], forks=True)


def test_a_resumed_fork_still_knows_where_it_came_from(config: Config, started: list[Path]) -> None:
    first = submit(make_plan("pipeline", config), []).run_dir
    fork = submit(make_plan("pipeline", config, forks=True), [], forks=True).run_dir

    assert submit(plan_again(fork), []).run_dir == fork
    assert load_header(fork).origin == first.name


def test_a_replaced_run_is_put_aside_whole_and_a_new_one_begins(
    config: Config, started: list[Path], half_trained: Path
) -> None:
    run_dir = half_trained
    checkpoints = list((run_dir / "checkpoints").iterdir())

    done = submit(make_plan("pipeline", config), [], replaces=True)

    assert done.run_dir == run_dir
    assert not (run_dir / "checkpoints").exists()
    old = run_dir.with_name(load_header(run_dir).origin)
    assert ".old1-" in old.name
    assert done.message == f"submitted; the run that there was is {old.name} now"
    assert [path.name for path in (old / "checkpoints").iterdir()] == [path.name for path in checkpoints]
    assert load_header(old).id == old.name
    assert (read_state(old).state, read_state(old).stage) == (State.stopped, "train")
    assert submit(plan_again(old), []).run_dir == old  # it can be gone on with
    assert started[-2:] == [run_dir, old]


def test_a_running_run_is_not_replaced(
    config: Config, started: list[Path], own: Callable[[Path], None]
) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    with attempt(run_dir, "train"), pytest.raises(RefusedError, match="must not be running") as refused:
        submit(make_plan("pipeline", config), [], replaces=True)
    assert refused.value.fix.startswith(f"univip cancel {run_dir}")
    own(run_dir)

    with pytest.raises(RefusedError, match="must not be running"):
        submit(make_plan("pipeline", config), [], replaces=True)

    assert len(started) == 1
    assert len(list(run_dir.parent.glob("univip*"))) == 1


def test_a_run_of_which_nothing_began_is_replaced_by_itself(config: Config, started: list[Path]) -> None:
    """Such as one that SLURM refused, time and again."""
    for _ in range(3):
        run_dir = submit(make_plan("pipeline", config), [], replaces=True).run_dir

    assert [each.name for each in run_dir.parent.glob("univip*")] == [run_dir.name]


def test_replacing_nothing_is_a_submission(config: Config, started: list[Path]) -> None:
    assert submit(make_plan("pipeline", config), [], replaces=True).message == "submitted"


def test_a_lock_that_was_put_aside_is_taken_anew(config: Config, started: list[Path]) -> None:
    """A shell that waits for a run which is then replaced must meet the others at the new directory."""
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    path = run_dir / "submit.lock"
    with path.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=submit, args=(make_plan("pipeline", config), []))
        waiting.start()
        while not is_waited_for(path):
            time.sleep(0.01)
        run_dir.rename(run_dir.with_name("aside"))
    waiting.join()

    assert (run_dir / "config.yaml").exists()


def is_waited_for(path: Path) -> bool:
    """Whether somebody waits for the lock on a file, says the kernel."""
    inode = str(path.stat().st_ino)
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())
