"""A submission that ends half-way leaves no job that nobody knows of, and no run that is forgotten."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.attempts import attempt
from jobs.compose import compose
from jobs.config import Config, load_header
from jobs.outcomes import read_json, write_json
from jobs.requests import Request
from launcher import submission
from launcher.plan import make_plan, plan_again
from launcher.runs import JOBS_FILE, SubmittedJobs
from launcher.states import State, read_state
from launcher.submission import submit
from launcher.supervise import decide, resubmit
from univip.checkpoint import layout
from univip.config import MethodName
from univip.errors import UnivipError
from univip.resilience.ledger import Ledger


@pytest.fixture
def config(config: Config) -> Config:
    """The same on SLURM."""
    overrides = [f"data.root='{config.data.root}'", "data=folder", f"paths.runs='{config.paths.runs}'"]
    return compose([*overrides, "debug=small", "cluster=slurm"])


@pytest.fixture
def slurm(stand_ins: Callable[[dict[str, str]], Path]) -> Path:
    """Jobs wait until they are cancelled; `refuse-N` refuses the Nth."""
    return stand_ins(
        {
            "sbatch": 'n=$(ls | grep -c ^job); [ -f refuse-$n ] && echo "try later" >&2 && exit 1; '
            'cp "$1" job-$n; echo "Submitted batch job 10$n"',
            "squeue": "ls | sed -nE 's/^job-(.*)/10&|PENDING|Priority/; s/job-//p'",
            "scancel": "shift; for id; do mv job-${id#10} cancelled-${id#10}; done",
            **dict.fromkeys(("scontrol", "sinfo", "sacct", "srun"), "exit 0"),
        }
    )


def jobs_of(run_dir: Path) -> dict[str, str]:
    jobs = SubmittedJobs.load(run_dir)
    assert jobs is not None
    return jobs.ids


def waiting(slurm: Path) -> int:
    return len(list(slurm.glob("job-*")))


def test_a_refusal_leaves_a_run_that_supervise_still_cares_for(config: Config, slurm: Path) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    assert len(jobs_of(run_dir)) == waiting(slurm) == 5
    for job in slurm.glob("job-*"):
        job.unlink()
    (slurm / "refuse-1").touch()

    with pytest.raises(UnivipError, match="try later"):
        submit(plan_again(run_dir), [])

    assert waiting(slurm) == 0
    assert jobs_of(run_dir) == {}
    assert read_state(run_dir).state is State.stopped
    decision = decide(run_dir, now=100.0)
    assert decision is not None
    assert decision.resubmit
    for _ in range(10):  # a controller that is down for a while takes nothing from the budget of a run
        with pytest.raises(UnivipError, match="try later"):
            resubmit(run_dir, decision)
    assert decide(run_dir, now=100.0) == decision
    (slurm / "refuse-1").unlink()
    before = Request.load(run_dir)
    resubmit(run_dir, decision)
    assert len(jobs_of(run_dir)) == waiting(slurm) == 5
    assert "already in SLURM's queue" in resubmit(run_dir, decision)  # by another supervisor, say
    taken = [each for each in Ledger(run_dir / "ledger.jsonl").read() if each["kind"] == "supervise"]
    assert len(taken) == 1
    after = Request.load(run_dir)
    assert before
    assert after
    assert after.id != before.id
    assert after.submitted == before.submitted  # `@last` stays what a person submitted


def test_what_interrupts_a_submission_withdraws_what_was_accepted(
    config: Config, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = submission.write_json

    def write_until_two(path: Path, document: dict[str, object]) -> None:
        if path.name == JOBS_FILE and waiting(slurm) == 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        write(path, document)

    monkeypatch.setattr(submission, "write_json", write_until_two)

    with pytest.raises(OSError, match="quota"):
        submit(make_plan("pipeline", config), [])

    assert waiting(slurm) == 0
    assert len(list(slurm.glob("cancelled-*"))) == 2


def test_a_submission_that_is_killed_has_written_down_what_was_accepted(
    config: Config, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan("pipeline", config)
    (slurm / "refuse-2").touch()
    monkeypatch.setattr("launcher.sbatch.withdraw_jobs", lambda ids: os._exit(9))  # no word is left to say

    child = os.fork()
    if not child:
        submit(plan, [])
    os.waitpid(child, 0)

    assert sorted(jobs_of(plan.run_dir).values()) == ["100", "101"]
    assert plan.proposals is not None
    boxes = read_json(plan.run_dir.parent / plan.proposals.id / JOBS_FILE)
    assert boxes is not None
    assert len(boxes["jobs"]) == 2
    (slurm / "refuse-2").unlink()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(slurm), prepend=os.pathsep)
    assert submit(plan_again(plan.run_dir), []).is_new
    assert len(jobs_of(plan.run_dir)) == waiting(slurm) == 5


def test_what_another_request_does_not_make_is_submitted_beside_it(config: Config, slurm: Path) -> None:
    """Of the same photographs in folders of other names the index is made again."""
    first = submit(make_plan("pipeline", config), []).run_dir
    boxes = first.parent / load_header(first).proposals
    other = compose(
        [
            f"data.root='{config.data.root}'",
            "data=folder",
            f"paths.runs='{config.paths.runs}'",
            "debug=small",
            "cluster=slurm",
            "train.seed=7",
        ]
    )
    document = read_json(boxes / JOBS_FILE)
    assert document is not None
    document["jobs"] = [job for job in document["jobs"] if job["stage"] != "prepare"]
    write_json(boxes / JOBS_FILE, document)

    second = submit(make_plan("pipeline", other), []).run_dir

    assert jobs_of(second) == {
        "prepare": "105",
        "shards": "101",
        "merge": "102",
        "train": "106",
        "evaluate": "107",
    }
    dependencies = [line for line in (slurm / "job-5").read_text().splitlines() if "--dependency" in line]
    assert dependencies == ["#SBATCH --dependency=afterok:102"]


def test_boxes_that_slurm_began_and_this_machine_makes_are_running(
    config: Config, slurm: Path, own: Callable[[Path], None]
) -> None:
    first = submit(make_plan("pipeline", config), []).run_dir
    boxes = first.parent / load_header(first).proposals
    assert read_state(boxes).state is State.queued

    own(first)
    (first / "supervisor.json").rename(boxes / "supervisor.json")

    assert read_state(boxes).state is State.running


def test_boxes_that_were_removed_are_made_again(config: Config, slurm: Path) -> None:
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    boxes = run_dir.parent / load_header(run_dir).proposals
    for job in slurm.glob("job-*"):
        job.unlink()
    shutil.rmtree(boxes)

    assert submit(plan_again(run_dir), []).is_new

    assert load_header(boxes).id == boxes.name
    assert len(jobs_of(run_dir)) == waiting(slurm) == 5


def test_a_job_that_is_still_ending_does_not_keep_a_run_that_is_done(config: Config, slurm: Path) -> None:
    run_dir = submit(make_plan("train", config_of_byol(config)), []).run_dir
    for kind in ("prepare", "train"):
        with attempt(run_dir, kind) as mine:
            mine.exit_code = 0
    (run_dir / "checkpoints" / layout.name_of(3)).mkdir(parents=True)
    assert waiting(slurm) == 2

    assert submit(make_plan("train", config_of_byol(config)), []).message == "done already"
    assert submit(make_plan("evaluate", config_of_byol(config)), []).is_new


def config_of_byol(config: Config) -> Config:
    """Without boxes."""
    return replace(config, method=replace(config.method, name=MethodName.byol))


def test_an_older_request_is_known_where_nothing_of_the_newer_one_is(config: Config, slurm: Path) -> None:
    """Killed after the request was written, while the code was copied."""
    run_dir = submit(make_plan("pipeline", config), []).run_dir
    for job in slurm.glob("job-*"):
        job.unlink()
    plan_again(run_dir).request.save(run_dir)

    assert SubmittedJobs.load(run_dir) is None
    decision = decide(run_dir, now=100.0)

    assert decision is not None
    assert decision.resubmit
    with attempt(run_dir, "train"):
        assert decide(run_dir, now=100.0) is None
