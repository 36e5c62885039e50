"""The run of another user: it can be looked at, and nothing in it is gone on with, changed or unpickled."""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
from pathlib import Path

import PIL.Image
import pytest

from jobs.attempts import attempt
from jobs.config import Config, load_header
from launcher import submission
from launcher.cli.main import run
from launcher.errors import REFUSED, RefusedError
from launcher.plan import make_plan, plan_again
from launcher.runs import RUNS_VARIABLE
from launcher.submission import submit

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
OTHER = 12345


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


@pytest.fixture
def request_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A submit, whose supervisor is not started."""
    (tmp_path / "photographs").mkdir()
    PIL.Image.new("RGB", (80, 80)).save(tmp_path / "photographs" / "a.png")
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path / "runs"))
    monkeypatch.setattr(submission, "start_local", lambda *_: 1)
    return ["submit", "train", "method=byol", "data=folder", f"data.root='{tmp_path}/photographs'"]


@pytest.fixture
def bomb(tmp_path: Path, request_words: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is made if something in the run, which then belongs to somebody else, is unpickled."""
    assert run(request_words) == 0
    bomb = tmp_path / "exploded"
    [run_dir] = (tmp_path / "runs").iterdir()
    for name in (
        "submitit/7_submitted.pkl",
        "submitit/7_0_result.pkl",
        "submitit/7_submitted.pkl.save_tmp",
        "checkpoints/step-000000001/manifest.json",
        "checkpoints/step-000000001/model.safetensors",
        "checkpoints/latest",
        "attempts/0001/round-00/rank-0.json",
        "proposals.arrow",
        "images.arrow",
    ):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_bytes(pickle.dumps(Bomb(bomb)))
    if os.getuid() == 0:
        for path in (run_dir, *run_dir.rglob("*")):
            os.chown(path, OTHER, OTHER)
    else:
        mine = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    return bomb


def state_of(tmp_path: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*"))


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["resume", "@last"], "--fork"),
        (["resume", "@last", "--take-over"], "--fork"),
        (["submit"], "--fork"),
        (["submit", "--replace"], "--fork"),
        (["cancel", "@last"], "ask its owner"),
        (["cancel", "@last", "--now"], "ask its owner"),
        (["clean", "@last", "--whole"], "ask its owner"),
        (["report", "@last"], " -o "),
    ],
    ids=" ".join,
)
def test_it_is_not_gone_on_with(
    bomb: Path,
    request_words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    fix: str,
) -> None:
    before = state_of(tmp_path)
    capsys.readouterr()

    assert run([*request_words, *words[1:]] if words[0] == "submit" else words) == REFUSED

    what, where, advice = capsys.readouterr().err.splitlines()[-3:]
    assert "must be yours to" in what
    assert where.startswith("  where: ")
    assert fix in advice
    assert state_of(tmp_path) == before
    assert not bomb.exists()


@pytest.mark.parametrize(
    "words", [["status"], ["show"], ["show", "journal"], ["logs"], ["digest"], ["export"]], ids=" ".join
)
def test_it_is_looked_at_without_unpickling_anything(
    bomb: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state_of(tmp_path)

    code = run([words[0], *(["@last"] if words[0] != "status" else []), *words[1:]])

    assert code in (0, 1)  # nothing can be read of these checkpoints
    assert state_of(tmp_path) == before
    assert not bomb.exists()


def test_a_report_of_it_is_written_where_one_may_write(
    bomb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = state_of(tmp_path)
    assert run(["report", "@last"]) == REFUSED
    advice = capsys.readouterr().err.splitlines()[-1].partition(" univip ")[2]

    assert run(shlex.split(advice)) == 0

    [run_dir] = (tmp_path / "runs").iterdir()
    assert f"<h1>{run_dir.name}</h1>" in (tmp_path / f"{run_dir.name}.html").read_text()
    assert state_of(tmp_path) == before
    assert not bomb.exists()


def test_the_bomb_explodes_where_something_is_unpickled(bomb: Path, tmp_path: Path) -> None:
    [run_dir] = (tmp_path / "runs").iterdir()

    pickle.loads((run_dir / "submitit" / "7_submitted.pkl").read_bytes())

    assert bomb.exists()


def test_supervising_leaves_it_alone(bomb: Path, tmp_path: Path) -> None:
    before = state_of(tmp_path)

    assert run(["supervise", "--once"]) == 0

    assert state_of(tmp_path) == before
    assert not bomb.exists()


@needs_root
def test_the_way_out_of_a_run_of_another_user_is_a_fork(config: Config, started: list[Path]) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    boxes = run_dir.parent / load_header(run_dir).proposals
    os.chown(run_dir, OTHER, OTHER)
    os.chown(boxes, OTHER, OTHER)

    for request in (lambda: make_plan("pipeline", config), lambda: plan_again(run_dir)):
        with pytest.raises(RefusedError, match="must be yours to resume") as refused:
            request()
        assert "--fork" in refused.value.fix
    fork = submit(make_plan("pipeline", config, forks=True), [], forks=True).run_dir

    # Boxes that are not made yet have to be made somewhere else, too.
    assert load_header(fork).proposals == boxes.name.replace("proposals-", "proposals.fork1-")


@needs_root
def test_finished_boxes_of_another_user_are_read_and_not_written(config: Config, started: list[Path]) -> None:
    plan = make_plan("pipeline", config)
    boxes = submit(plan, []).run_dir.parent / plan.header.proposals
    for kind in ("prepare", "shards", "merge"):
        with attempt(boxes, kind) as mine:
            mine.exit_code = 0
    os.chown(boxes, OTHER, OTHER)
    shutil.rmtree(plan.run_dir)
    before = sorted((path, path.stat().st_mtime_ns) for path in boxes.rglob("*"))

    done = submit(make_plan("pipeline", config), [])

    assert load_header(done.run_dir).proposals == boxes.name
    assert sorted((path, path.stat().st_mtime_ns) for path in boxes.rglob("*")) == before
