"""What state a run is in: from its files, and where they cannot tell, from what SLURM says of its jobs.

Files come first: a run that finished last year, or on a machine that is off, is read like any other. SLURM is
asked only about runs that it has not finished, and hardly ever (`launcher/queue.py`).
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jobs.attempts import Attempt, read_attempts
from jobs.outcomes import Cause, ExitCode
from jobs.requests import CANCELLED_FILE, Request, Stage, stages_of
from jobs.slurm import CAUSES
from launcher.queue import look
from launcher.runs import Owner, SubmittedJobs
from launcher.slurm import NEVER, JobState
from univip.errors import UnivipError

_LATE_S = 90.0  # a network file system may show a file as it was a minute ago


class State(StrEnum):
    """What a run is doing."""

    queued = "queued"  # accepted; nothing has begun
    running = "running"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"
    stopped = "stopped"  # ended without a word, or asked to be started again and was not


@dataclass(frozen=True)
class RunState:
    """State of a run, and what is behind it.

    Attributes:
        stage: Kind of the stage that runs, failed or comes next; empty where all are done.
        cause: Why it failed or stopped, one of `jobs.outcomes.Cause`; while it is queued, SLURM's reason.
        attempt: Number of the newest attempt, 0 if there is none.
        message: The cause in words: what, where, fix.
    """

    state: State
    stage: str = ""
    cause: str = ""
    attempt: int = 0
    message: str = ""

    def is_over(self) -> bool:
        """Whether nobody works on the run, or will without being asked."""
        return self.state not in (State.queued, State.running)


def read_state(run_dir: Path) -> RunState:
    """State of a run, from its files."""
    attempts = read_attempts(run_dir)
    number = max((attempt.number for attempt in attempts), default=0)
    request = Request.load(run_dir)
    # The boxes of a pipeline have no request of their own.
    stages = request.stages if request else stages_of("proposals", run_dir.name, run_dir.name)
    remaining = [stage for stage in stages if not stage.is_done(run_dir.parent)]
    if not remaining:
        if request and request.unfinished and (later := request.unfinished.remaining(run_dir.parent)):
            return RunState(State.stopped, later[0].kind, attempt=number)
        return RunState(State.done, attempt=number)
    stage, owner = remaining[0].kind, Owner.load(run_dir)
    is_here = owner is not None and owner.host == socket.gethostname()
    jobs = SubmittedJobs.load(run_dir)
    if jobs and not (owner and is_here and owner.is_alive()):  # boxes that SLURM began may be made here now
        return _state_in_slurm(run_dir, stages, remaining, jobs, number)
    if (owner and owner.is_alive()) or any(attempt.is_alive() for attempt in attempts):
        return RunState(State.running, stage, attempt=number)
    ended = _last_of(remaining[0], run_dir.parent, request.submitted if request else 0.0)
    if owner and owner.outcome not in ("", "done") and (request is None or owner.request == request.id):
        if owner.outcome == "cancelled":
            return RunState(State.cancelled, stage, attempt=number, message="asked to stop")
        if ended and ended.cause:  # the stage knows more of its end than its exit status tells
            return RunState(State.failed, stage, ended.cause, number, ended.message)
        return RunState(State.failed, stage, owner.cause, number)
    if (run_dir / CANCELLED_FILE).exists():
        return RunState(State.cancelled, stage, attempt=number, message="asked to stop")
    if ended is None or ended.exit_code == ExitCode.DONE:  # done, but not of what there is now
        return RunState(State.stopped, stage, attempt=number)
    if ended.exit_code is None or ended.exit_code == ExitCode.REQUEUE:
        cause = "" if ended.cause == Cause.STOPPED else ended.cause
        return RunState(State.stopped, stage, cause, number, ended.message)
    return RunState(State.failed, stage, ended.cause, number, ended.message)


def _state_in_slurm(
    run_dir: Path, stages: list[Stage], remaining: list[Stage], submitted: SubmittedJobs, number: int
) -> RunState:
    """State of a run whose stages are jobs of SLURM: of the first one that has still to end."""
    user = run_dir.stat().st_uid
    queue = look(run_dir.parent, submitted.ids.values(), user=user)

    def job_of(stage: Stage) -> JobState | None:
        return queue.get(submitted.ids.get(stage.kind, ""))

    # An array is done when each of its elements is, which no file tells before they are merged.
    is_left = (each for each in remaining if (job := job_of(each)) is None or job.state != "COMPLETED")
    stage = next(is_left, remaining[-1])
    job, job_id = job_of(stage), submitted.ids.get(stage.kind, "")
    if not job_id:
        message = "SLURM has not taken its jobs"
        return RunState(State.stopped, stage.kind, attempt=number, message=message)
    last = _last_of_job(run_dir.parent / stage.run, stage, job_id)
    is_working = last is not None and last.ended is None
    failures = (ExitCode.CRASH, ExitCode.EXHAUSTED, ExitCode.REFUSED)
    if stage.kind != "shards" and last and last.exit_code in failures:
        return RunState(State.failed, stage.kind, last.cause, number, last.message)
    # A job that has just begun has no attempt yet; it will find the file.
    has_stopped = job is None or job.is_over or (not is_working if last else job.state == "PENDING")
    if (run_dir / CANCELLED_FILE).exists() and has_stopped:
        return RunState(State.cancelled, stage.kind, attempt=number, message="asked to stop")
    # Where SLURM does not answer, or may not tell of other users' jobs, what files tell is the best.
    if job is None and (queue.error or not queue.time or (user != os.getuid() and is_working)):
        state = State.running if is_working else State.queued
        return RunState(state, stage.kind, attempt=number, message=queue.error)
    if job and not job.is_over:
        has_just_begun = is_working and last is not None and last.started > queue.time
        return _living(stage, job_id, JobState("RUNNING") if has_just_begun else job, number)
    ended_s = time.time() - queue.seen_ended.get(job_id, 0.0)
    if job and job.state == "COMPLETED" and (last is None or is_working) and ended_s < _LATE_S:
        # It ended well, and has said so in a file that a network file system shows later.
        return RunState(State.running, stage.kind, attempt=number)
    before = [job_of(each) for each in stages[: stages.index(stage)]]
    has_failed = any(each and each.state not in ("COMPLETED", "CANCELLED") for each in before)
    if job and job.state == "CANCELLED" and has_failed:
        # By SLURM: a job before it was done by its files, but SLURM took it for failed after that.
        job = JobState("PENDING", NEVER)
    return _ended_in_slurm(stage, job_id, job, last, number)


def _last_of_job(run_dir: Path, stage: Stage, job_id: str) -> Attempt | None:
    """The newest attempt of a job; of an array one that still works, else one that failed."""
    mine = [each for each in read_attempts(run_dir) if each.slurm_job_id.partition("_")[0] == job_id]
    if stage.kind == "shards":
        return min(mine, key=lambda each: (each.ended is not None, _hope(each)), default=None)
    return mine[-1] if mine else None


def _hope(attempt: Attempt) -> int:
    """Order of attempts that have ended: one for a person to look at, one that failed, put back, done."""
    if attempt.exit_code in (ExitCode.EXHAUSTED, ExitCode.REFUSED):
        return 0
    if attempt.exit_code == ExitCode.REQUEUE:
        return 2
    return 3 if attempt.exit_code in (None, ExitCode.DONE) else 1


def _living(stage: Stage, job_id: str, job: JobState, number: int) -> RunState:
    """State of a run whose job waits or runs."""
    if message := _held(job, job_id):
        return RunState(State.queued, stage.kind, job.reason or job.state, number, message)
    if job.state != "PENDING":
        return RunState(State.running, stage.kind, attempt=number)
    # What it waited for is done, or it would not be the first that is left: only SLURM does not know yet.
    reason = "" if job.reason in ("None", "Dependency") else job.reason
    return RunState(State.queued, stage.kind, reason, number)


def _held(job: JobState, job_id: str) -> str:
    """What to do about a job that waits for a person; empty if it does not."""
    is_held = job.state in ("REQUEUE_HOLD", "SPECIAL_EXIT") or job.reason.startswith("JobHold")
    if not is_held and "held" not in job.reason.lower():
        return ""
    if job.reason == "JobHeldAdmin":
        return f"an administrator holds job {job_id}: only they can release it"
    return f"scontrol release {job_id}"


def _ended_in_slurm(
    stage: Stage, job_id: str, job: JobState | None, last: Attempt | None, number: int
) -> RunState:
    """State of a run whose job has ended, though its stage is not done."""
    if job and job.reason == NEVER:
        message = "it waits for a job that has failed or was cancelled, and so for ever"
        return RunState(State.stopped, stage.kind, job.reason, number, message)
    if job and job.state == "CANCELLED":
        return RunState(
            State.cancelled, stage.kind, attempt=number, message=f"job {job_id} was cancelled in SLURM"
        )
    if job and job.state in CAUSES:
        message = f"SLURM ended job {job_id}: {job.state}"
        return RunState(State.stopped, stage.kind, CAUSES[job.state], number, message)
    if last and last.exit_code not in (None, ExitCode.REQUEUE, ExitCode.DONE):
        return RunState(State.failed, stage.kind, last.cause, number, last.message)
    if job and job.state == "FAILED" and not (last and last.exit_code == ExitCode.REQUEUE):
        message = f"SLURM says that job {job_id} failed"
        if last is None:
            error = UnivipError(
                f"job {job_id} must begin its work, but has failed before it could leave a word.",
                where=f"univip logs {stage.run}; scontrol show job {job_id}  # names its node",
                fix="univip doctor cluster=slurm --deep  # does a node see the folder of the runs?",
            )
            message = str(error)
        why = Cause.KILLED if last and last.ended is None else Cause.UNKNOWN
        return RunState(State.failed, stage.kind, str(why), number, message)
    if last and last.cause == Cause.CANCELLED:  # which SLURM may have forgotten since
        return RunState(State.cancelled, stage.kind, attempt=number, message=last.message)
    cause = last.cause if last and last.cause != Cause.STOPPED else ""
    return RunState(State.stopped, stage.kind, cause, number, last.message if last else "")


def _last_of(stage: Stage, runs: Path, since: float) -> Attempt | None:
    """The newest attempt of a stage that began after a request and was not refused for another one."""
    kinds = ("shards", "shard:") if stage.kind == "shards" else (stage.kind,)
    found = [
        attempt
        for attempt in read_attempts(runs / stage.run)
        if attempt.stage.startswith(kinds) and attempt.started >= since and attempt.exit_code != ExitCode.BUSY
    ]
    return found[-1] if found else None
