"""Runs on disk: where they are, which one a name means, and who works on one."""

from __future__ import annotations

import itertools
import os
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path

from jobs.attempts import start_ticks
from jobs.config import FILE_NAME as CONFIG_FILE
from jobs.outcomes import read_json
from jobs.requests import SUPERVISOR_FILE, Request
from launcher.errors import RefusedError, RunNotFoundError

RUNS_VARIABLE = "UNIVIP_RUNS"
JOBS_FILE = "jobs.json"  # of SLURM: which job does which stage
LAST = "@last"
FORK = "univip submit ... --fork, or paths.runs=/a/folder/of/your/own"


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


def _submitted(run_dir: Path) -> tuple[bool, float]:
    """Order of `status`: runs nobody asked for by name come first, then by the time of the request."""
    request = Request.load(run_dir)
    return (request is not None, request.submitted if request else (run_dir / CONFIG_FILE).stat().st_mtime)
