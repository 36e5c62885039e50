"""Runs on disk: where they are, which one a name means, and what state one is in.

Files come first: a run that finished last year, or on a machine that is off, is read like any other. SLURM is
asked only about runs that it has not finished, and hardly ever (`launcher/queue.py`).
"""

from __future__ import annotations

import itertools
import os
import shlex
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jobs.attempts import Attempt, read_attempts, start_ticks
from jobs.config import FILE_NAME as CONFIG_FILE
from jobs.outcomes import Cause, ExitCode, read_json
from jobs.requests import CANCELLED_FILE, SUPERVISOR_FILE, Request, Stage, stages_of
from launcher.errors import RefusedError, RunNotFoundError
from launcher.queue import look
from launcher.slurm import NEVER, JobState
from univip.errors import UnivipError

RUNS_VARIABLE = "UNIVIP_RUNS"
JOBS_FILE = "jobs.json"  # of SLURM: which job does which stage
LAST = "@last"
_LATE_S = 90.0  # a network file system may show a file as it was a minute ago
FORK = "univip submit ... --fork, or paths.runs=/a/folder/of/your/own"
# How SLURM ended a job -> why, where no process could say so itself.
_CAUSES = {
    "TIMEOUT": Cause.TIME_LIMIT,
    "DEADLINE": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "PREEMPTED": Cause.PREEMPTION,
}


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


@dataclass(frozen=True)
class Owner:
    """The local supervisor of a run."""

    pid: int
    host: str
    start_ticks: int
    request: str
    outcome: str
    cause: str  # of the stage that failed

    @classmethod
    def load(cls, run_dir: Path) -> Owner | None:
        """Who wrote `supervisor.json`, alive or not."""
        document = read_json(run_dir / SUPERVISOR_FILE)
        if document is None:
            return None
        causes = [stage["cause"] for stage in document["stages"] if stage["state"] == "failed"]
        return cls(
            pid=document["pid"],
            host=document["host"],
            start_ticks=document["start_ticks"],
            request=document["request"],
            outcome=document["outcome"],
            cause=next(iter(causes), ""),
        )

    def is_alive(self) -> bool:
        """Whether the process runs. On another host that cannot be seen: it does until it says otherwise."""
        if self.outcome:
            return False
        return self.host != socket.gethostname() or start_ticks(self.pid) == self.start_ticks


@dataclass(frozen=True)
class SubmittedJobs:
    """Ids of SLURM's jobs by stage kind; of an array one id.

    Attributes:
        runs: Ids of the runs that these jobs work on, by stage kind.
    """

    ids: dict[str, str]
    runs: dict[str, str]

    @classmethod
    def load(cls, run_dir: Path) -> SubmittedJobs | None:
        """Jobs of the newest request for a run, or of boxes made on the way; None if SLURM has none."""
        document, request = read_json(run_dir / JOBS_FILE), Request.load(run_dir)
        if document is None or (request is not None and document["request"] != request.id):
            return None
        jobs = document["jobs"]
        return cls({job["stage"]: job["id"] for job in jobs}, {job["stage"]: job["run"] for job in jobs})

    def of(self, run: str) -> list[str]:
        """Ids of the jobs that work on one of the runs."""
        return [job_id for stage, job_id in self.ids.items() if self.runs[stage] == run]


def runs_root() -> Path:
    """Folder of the runs: `UNIVIP_RUNS`, or `runs` below the current folder."""
    return Path(os.environ.get(RUNS_VARIABLE) or "runs").expanduser().absolute()


def all_runs(root: Path) -> list[Path]:
    """Every run directory, the one submitted last at the end."""
    if not root.is_dir():
        return []
    # Not `Path.is_file`, which raises for the private run of somebody else.
    found = (path for path in root.iterdir() if os.path.isfile(path / CONFIG_FILE))  # noqa: PTH113
    return sorted(found, key=_submitted)


def is_foreign(run_dir: Path) -> bool:
    """Whether another user made this directory."""
    try:
        return run_dir.stat().st_uid != os.getuid()
    except (FileNotFoundError, NotADirectoryError):
        return False


def refuse_foreign(run_dir: Path, verb: str = "resume", *, fix: str = FORK) -> None:
    """Refuse a run directory of another user: it can be looked at, but not gone on with.

    Raises:
        RefusedError: If it is one.
    """
    if is_foreign(run_dir):
        raise RefusedError(
            f"run `{run_dir.name}` must be yours to {verb}, but belongs to user {run_dir.stat().st_uid}.",
            where=str(run_dir),
            fix=fix,
        )


def free_sibling(run_dir: Path, word: str) -> Path:
    """A name that is not taken yet, beside a run: `coco-1234abcd` -> `coco.fork1-1234abcd`."""
    experiment, _, hash8 = run_dir.name.rpartition("-")
    names = (f"{experiment}.{word}{number}-{hash8}" for number in itertools.count(1))
    return next(path for path in map(run_dir.with_name, names) if not path.exists())


def find_run(name: str) -> Path:
    """The run directory that `name` means: a path, an id, a unique beginning of one, or `@last`.

    Raises:
        RefusedError: If it means the private run of another user.
        RunNotFoundError: If it means no run, or several.
    """
    if os.path.isfile(Path(name) / CONFIG_FILE):  # noqa: PTH113 - it may be somebody else's private run
        return Path(name).resolve()
    root = runs_root()
    runs = all_runs(root)
    if name == LAST and runs:
        return runs[-1]
    if exact := [run for run in runs if run.name == name]:
        return exact[0]
    private = root / name
    is_there = os.path.isdir(private)  # noqa: PTH112 - of a name that no file can have it says no
    if private.parent == root and is_there and not os.access(private, os.R_OK | os.X_OK):
        raise RefusedError(
            f"run `{name}` must be readable, but belongs to user {private.stat().st_uid} and is private.",
            where=str(root),
            fix=FORK,
        )
    found = [run for run in runs if name and run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(run.name for run in found[:5])
        raise RunNotFoundError(
            f"`{name}` must name one run, but names {len(found)}: {names}.",
            where=str(root),
            fix="type more of the name",
        )
    from difflib import get_close_matches

    near = get_close_matches(name, [run.name for run in runs], n=3, cutoff=0.0)
    known = f"; the nearest are {', '.join(near)}" if near else ", and there is no run yet"
    raise RunNotFoundError(
        f"`{name}` must name a run, but names none{known}.",
        where=str(root),
        fix=f"univip status --all  # or {RUNS_VARIABLE}=/where/the/runs/are",
    )


def what_next(run_dir: Path, *verbs: str) -> str:
    """What to type next, such as `logs RUN -f`; names the folder of the runs if it is not the usual one."""
    is_usual = run_dir.parent == runs_root()
    univip = "univip" if is_usual else f"univip --runs {shlex.quote(str(run_dir.parent))}"
    commands = [f"{univip} {verb.replace('RUN', run_dir.name)}" for verb in verbs]
    return f"next       {'; '.join(commands)}"


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
    if jobs := SubmittedJobs.load(run_dir):
        return _state_in_slurm(run_dir, stages, remaining, jobs, number)
    stage = remaining[0].kind
    owner = Owner.load(run_dir)
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
    jobs = [(stage, queue.get(submitted.ids.get(stage.kind, ""))) for stage in remaining]
    # An array is done when each of its elements is, which no file tells before they are merged.
    stage, job = next(((each, job) for each, job in jobs if not job or job.state != "COMPLETED"), jobs[-1])
    mine = [
        attempt
        for attempt in read_attempts(run_dir.parent / stage.run)
        if attempt.slurm_job_id.partition("_")[0] == submitted.ids.get(stage.kind)
    ]
    last = mine[-1] if mine else None
    if stage.kind == "shards" and mine:  # one that still works, else one that failed
        last = min(mine, key=lambda each: (each.ended is not None, _hope(each)))
    elif last and last.exit_code in (ExitCode.CRASH, ExitCode.EXHAUSTED, ExitCode.REFUSED):
        return RunState(State.failed, stage.kind, last.cause, number, last.message)
    # A job that has just begun has no attempt yet; it will find the file.
    has_stopped = job is None or job.is_over or (last.ended is not None if last else job.state == "PENDING")
    if (run_dir / CANCELLED_FILE).exists() and has_stopped:
        return RunState(State.cancelled, stage.kind, attempt=number, message="asked to stop")
    is_working = last is not None and last.ended is None
    job_id = submitted.ids.get(stage.kind, "")
    if not job_id:
        message = "SLURM has not taken its jobs"
        return RunState(State.stopped, stage.kind, attempt=number, message=message)
    # Where SLURM does not answer, or may not tell of other users' jobs, what files tell is the best.
    if job is None and (queue.error or not queue.time or (user != os.getuid() and is_working)):
        state = State.running if is_working else State.queued
        return RunState(state, stage.kind, attempt=number, message=queue.error)
    if job and not job.is_over:
        if last and last.ended is None and last.started > queue.time:
            return RunState(State.running, stage.kind, attempt=number)
        if message := _held(job, job_id):
            return RunState(State.queued, stage.kind, job.reason or job.state, number, message)
        if job.state != "PENDING":
            return RunState(State.running, stage.kind, attempt=number)
        # What it waited for is done, or it would not be the first that is left: only SLURM does not know yet.
        reason = "" if job.reason in ("None", "Dependency") else job.reason
        return RunState(State.queued, stage.kind, reason, number)
    ended_s = time.time() - queue.seen_ended.get(job_id, 0.0)
    if job and job.state == "COMPLETED" and (last is None or last.ended is None) and ended_s < _LATE_S:
        # It ended well, and has said so in a file that a network file system shows later.
        return RunState(State.running, stage.kind, attempt=number)
    if (
        job
        and job.state == "CANCELLED"
        and any(
            (queue.get(submitted.ids.get(each.kind, "")) or job).state not in ("COMPLETED", "CANCELLED")
            for each in stages[: stages.index(stage)]
        )
    ):
        # By SLURM: a job before it was done by its files, but SLURM took it for failed after that.
        job = JobState("PENDING", NEVER)
    return _ended_in_slurm(stage, job_id, job, last, number)


def _hope(attempt: Attempt) -> int:
    """Order of attempts that have ended: one for a person to look at, one that failed, put back, done."""
    if attempt.exit_code in (ExitCode.EXHAUSTED, ExitCode.REFUSED):
        return 0
    if attempt.exit_code == ExitCode.REQUEUE:
        return 2
    return 3 if attempt.exit_code in (None, ExitCode.DONE) else 1


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
    if job and job.state in _CAUSES:
        message = f"SLURM ended job {job_id}: {job.state}"
        return RunState(State.stopped, stage.kind, _CAUSES[job.state], number, message)
    if last and last.exit_code not in (None, ExitCode.REQUEUE, ExitCode.DONE):
        return RunState(State.failed, stage.kind, last.cause, number, last.message)
    if job and job.state == "FAILED" and not (last and last.exit_code == ExitCode.REQUEUE):
        message = f"SLURM says that job {job_id} failed"
        if last is None:
            error = UnivipError(
                f"job {job_id} must begin its work, but has failed before it could leave a word.",
                where=f"scontrol show job {job_id}  # names its node",
                fix="univip doctor cluster=slurm --deep  # does a node see the folder of the runs?",
            )
            message = str(error)
        why = Cause.KILLED if last and last.ended is None else Cause.UNKNOWN
        return RunState(State.failed, stage.kind, str(why), number, message)
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


def _submitted(run_dir: Path) -> tuple[bool, float]:
    """Order of `status`: runs nobody asked for by name come first, then by the time of the request."""
    request = Request.load(run_dir)
    return (request is not None, request.submitted if request else (run_dir / CONFIG_FILE).stat().st_mtime)
