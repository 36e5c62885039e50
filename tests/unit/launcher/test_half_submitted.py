"""A submission that ends half-way leaves no job that nobody knows of, and no run that is forgotten."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.attempts import attempt
from jobs.compose import compose
from jobs.config import Config
from jobs.outcomes import read_json
from jobs.requests import Request
from launcher import submission
from launcher.plan import make_plan, plan_again
from launcher.runs import JOBS_FILE, SubmittedJobs
from launcher.states import State, read_state
from launcher.submission import submit
from launcher.supervise import decide, resubmit
from univip.errors import UnivipError


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
    (slurm / "refuse-1").unlink()
    before = Request.load(run_dir)
    resubmit(run_dir, decision)
    assert len(jobs_of(run_dir)) == waiting(slurm) == 5
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
