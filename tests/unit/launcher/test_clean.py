from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jobs.attempts import attempt
from jobs.config import Config, RunHeader, RunKind, store
from jobs.outcomes import write_json
from jobs.requests import Request, stages_of
from launcher import clean
from launcher.cli.main import run
from univip.config import DataConfig

KEPT = b"to keep"
DAY_S = 86400.0


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_run(runs: Path, name: str, *, proposals: str = "", submitted: float = 1.0) -> Path:
    run_dir = runs / name
    run_dir.mkdir(parents=True)
    kind = RunKind.train if proposals else RunKind.proposals
    store(Config(data=DataConfig(root="/x")), RunHeader(name, kind, "f", 1, proposals), run_dir)
    Request("pipeline", stages_of("pipeline", name, proposals), submitted=submitted).save(run_dir)
    return run_dir


@pytest.fixture
def run_dir(runs: Path) -> Path:
    """A training that has left 1,000 bytes of each kind of waste, and much that must stay."""
    run_dir = make_run(runs, "coco-1", proposals="proposals-1")
    waste = bytes(1000)
    checkpoints = run_dir / "checkpoints"
    write(checkpoints / "abandoned" / "rollback-1" / "step-000000010" / "state.safetensors", waste)
    write(checkpoints / ".tmp-step-000000030" / "state.safetensors", waste[:600])
    write(run_dir / f".ledger.jsonl.{'0' * 32}.tmp", waste[:300])
    write(run_dir / "attempts" / ".claim-1" / "attempt.json", waste[:100])
    write(run_dir / "submitit" / "12_submitted.pkl", waste[:900])
    write(run_dir / "submitit" / "12_submission.sh", waste[:100])
    for name in (
        "checkpoints/step-000000020/state.safetensors",
        "checkpoints/latest",
        "checkpoints/abandoned/rollback-1/step-000000005/PINNED",
        "checkpoints/abandoned/rollback-1/step-000000005/state.safetensors",
        "submitit/12_0_log.out",
        "ledger.jsonl",
        "journal/0001.00-rank0000.jsonl",
        "results/evaluate.json",
    ):
        write(run_dir / name, KEPT)
    return run_dir


def files(run_dir: Path) -> set[Path]:
    return {path for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--yes", "--dry-run"], ["coco-1"]])
def test_without_a_yes_it_is_only_listed(
    run_dir: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run_dir)

    assert run(["clean", *words]) == 0

    out, err = capsys.readouterr()
    assert [line.split("  ")[-1] for line in out.splitlines()] == [
        "coco-1: 1 abandoned checkpoints",
        "coco-1: 3 leftovers of writes that were cut off",
        "coco-1: 2 files of jobs that have ended",
    ]
    assert err == "to free    0.0 MB; the same with --yes removes it\n"
    assert files(run_dir) == before


def test_what_is_waste_goes_and_all_the_rest_stays(run_dir: Path) -> None:
    before = files(run_dir)
    kept = {path for path in before if path.read_bytes() == KEPT or path.suffix in (".yaml", ".json")}
    kept -= set((run_dir / "attempts").rglob("*"))
    assert [waste.size_bytes() for waste in clean.leftovers(run_dir)] == [1000, 1000, 1000]

    assert run(["clean", "--yes"]) == 0

    assert files(run_dir) - {run_dir / "submit.lock"} == kept
    assert clean.leftovers(run_dir) == []


def test_copies_of_code_go_but_the_one_in_use(run_dir: Path) -> None:
    for name in ("aaaa/jobs/base.py", "aaaa.patch", "bbbb/jobs/base.py", "bbbb.patch"):
        write(run_dir / "code" / name, KEPT)
    assert run(["clean", "--yes"]) == 0
    assert len(list((run_dir / "code").iterdir())) == 4  # which one is in use is not known

    write(run_dir / "environment.json", b'{"code": "bbbb"}')
    assert run(["clean", "--yes"]) == 0

    assert sorted(path.name for path in (run_dir / "code").iterdir()) == ["bbbb", "bbbb.patch"]


def test_a_run_that_somebody_works_on_is_left_alone(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with attempt(run_dir, "train"):
        before = files(run_dir)
        assert run(["clean", "--yes"]) == 0
        assert files(run_dir) == before
        assert run(["clean", "coco-1", "--whole", "--yes"]) == 5

    assert "must not be running" in capsys.readouterr().err


def test_a_run_that_began_since_it_was_listed_is_left_alone(run_dir: Path) -> None:
    [waste, *_] = clean.leftovers(run_dir)

    with attempt(run_dir, "train"):
        clean.remove(waste, lambda: clean.leftovers(run_dir))

    assert all(path.exists() for path in waste.paths)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of another user")
def test_the_run_of_another_user_is_left_alone(run_dir: Path) -> None:
    os.chown(run_dir, 12345, 12345)
    before = files(run_dir)

    assert run(["clean", "--yes"]) == 0
    assert run(["clean", "coco-1", "--whole", "--yes"]) == 5

    assert files(run_dir) == before


@pytest.fixture
def in_slurm(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gives the run a job that is shown as cancelled; returns where a stand-in for squeue has to be."""
    request = Request.load(run_dir)
    assert request is not None
    job = {"stage": "train", "run": run_dir.name, "id": "7"}
    write_json(run_dir / "jobs.json", {"request": request.id, "jobs": [job]})
    shown = {"time": time.time(), "error": "", "jobs": {}, "ended": {"7": ["CANCELLED", ""]}, "missing": {}}
    write_json(run_dir.parent / ".slurm.json", shown)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path / "bin" / "squeue"


def tell(squeue: Path, script: str) -> None:
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o755)


SAYS = [("echo '7|RUNNING|None'", 5, "must have no job in SLURM"), ("echo down >&2; exit 1", 4, "must say")]


@pytest.mark.parametrize(("squeue", "code", "said"), SAYS, ids=["lives", "no answer"])
@pytest.mark.parametrize("whole", [[], ["coco-1", "--whole"]], ids=["leftovers", "whole"])
def test_nothing_goes_while_slurm_itself_knows_a_job_or_does_not_answer(
    run_dir: Path,
    in_slurm: Path,
    whole: list[str],
    squeue: str,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is shown of the run says that its job was cancelled."""
    tell(in_slurm, squeue)
    assert clean.leftovers(run_dir)
    before = files(run_dir)

    assert run(["clean", *whole, "--yes"]) == code

    assert files(run_dir) - {run_dir / "submit.lock"} == before
    err = capsys.readouterr().err
    assert said in err
    assert "freed      0.0 MB" in err


def test_boxes_stay_while_a_job_of_a_training_on_them_lives(
    run_dir: Path, runs: Path, in_slurm: Path
) -> None:
    boxes = make_run(runs, "proposals-1")
    tell(in_slurm, "echo '7|PENDING|Priority'")

    assert run(["clean", "proposals-1", "--whole", "--yes"]) == 5
    assert boxes.exists()

    tell(in_slurm, "echo '7|CANCELLED|None'")
    assert run(["clean", "proposals-1", "--whole", "--yes"]) == 0
    assert not boxes.exists()


def test_one_run_with_a_living_job_does_not_keep_the_others_from_being_cleaned(
    run_dir: Path, runs: Path, in_slurm: Path
) -> None:
    other = make_run(runs, "coco-2", proposals="proposals-1", submitted=2.0)
    torn = write(other / f".x.{'0' * 32}.tmp", b"")
    tell(in_slurm, "echo '7|RUNNING|None'")

    assert run(["clean", "--yes"]) == 5

    assert not torn.exists()
    assert (run_dir / "submitit" / "12_submission.sh").exists()


def test_a_named_run_goes_as_a_whole_only_when_both_are_said(run_dir: Path, runs: Path) -> None:
    other = make_run(runs, "coco-2", proposals="proposals-1")

    assert run(["clean", "--whole", "--yes"]) == 2
    assert run(["clean", "coco-1", "--whole"]) == 0
    assert run_dir.exists()
    assert run(["clean", "coco-1", "--whole", "--yes"]) == 0

    assert list(runs.iterdir()) == [other]


def test_boxes_stay_while_a_training_on_them_runs(run_dir: Path, runs: Path) -> None:
    boxes = make_run(runs, "proposals-1")
    with attempt(run_dir, "train"):
        assert run(["clean", "proposals-1", "--whole", "--yes"]) == 5
        assert boxes.exists()

    assert "on whose boxes 1 runs were trained" in clean.whole(boxes).what


def test_only_what_was_not_used_for_long_is_looked_at(
    run_dir: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recent = make_run(runs, "coco-2", proposals="proposals-1", submitted=time.time() - 2 * DAY_S)
    write(recent / f".x.{'0' * 32}.tmp", b"")

    assert run(["clean", "--older-than", "3"]) == 0
    assert "coco-2" not in capsys.readouterr().out
    assert run(["clean", "--older-than", "1"]) == 0
    assert "coco-2" in capsys.readouterr().out

    with attempt(recent, "evaluate"):
        pass
    assert time.time() - clean.last_used(recent) < 60


def test_a_removal_that_was_killed_is_finished_by_the_next(runs: Path) -> None:
    write(runs / ".removed-1" / "config.yaml", KEPT)

    assert run(["clean", "--yes"]) == 0

    assert list(runs.iterdir()) == []
