"""Carries a plan out: makes the run directories, refuses twins, and hands the stages over.

Two shells that submit the same request at once meet at a lock in the run directory: the second one waits
until the first is through, finds the run owned, and reports it.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jobs.attempts import living_attempts
from jobs.config import FILE_NAME as CONFIG_FILE
from jobs.config import ClusterKind, Config, RunHeader, load, load_header, store, with_site_of
from jobs.outcomes import read_json, write_json
from jobs.requests import CANCELLED_FILE, Stage
from launcher.errors import RefusedError
from launcher.local import start_local
from launcher.plan import Plan
from launcher.runs import JOBS_FILE, Owner
from launcher.sbatch import slurm_jobs, submit_slurm
from launcher.slurm import living_jobs
from univip.errors import ConfigError

_PACKAGES = ("univip", "torch", "torchvision", "opencv-contrib-python-headless", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Submission:
    """What became of a request.

    Attributes:
        jobs: Stage kind and job id (SLURM), or process id of the supervisor (local), of what was started.
        is_new: Whether anything was started; False if the run is done or running already.
    """

    run_dir: Path
    jobs: list[tuple[str, str]]
    is_new: bool
    message: str


def submit(plan: Plan, overrides: Sequence[str]) -> Submission:
    """Start what is not done of a plan, unless somebody works on it already.

    Args:
        plan: What was asked for.
        overrides: As typed; kept beside the configuration.

    Raises:
        ConfigError: If the folder of runs cannot be written.
        RefusedError: If the run belongs to another user, or lacks what the request builds on.
        SlurmUnavailableError: If SLURM is asked for and refuses.
    """
    runs = Path(plan.config.paths.runs)
    run_dir = plan.run_dir
    with _umask(plan.config.paths.mode):
        _make(run_dir)
        with _lock(run_dir):
            if message := _busy(run_dir):
                return Submission(run_dir, [], is_new=False, message=message)
            remaining = [stage for stage in plan.request.stages if not stage.is_done(runs)]
            if (run_dir / CONFIG_FILE).exists() and not remaining:
                return Submission(run_dir, [], is_new=False, message="done already")
            _refuse_missing_boxes(plan, runs)
            _write_run(run_dir, plan.config, plan.header)
            if plan.proposals:
                _make(runs / plan.proposals.id)
                _write_run(runs / plan.proposals.id, plan.config, plan.proposals)
            (run_dir / "overrides.txt").write_text(
                "".join(f"{line}\n" for line in overrides), encoding="utf-8"
            )
            write_json(run_dir / "environment.json", _environment())
            is_resumed = (run_dir / "attempts").exists()
            plan.request.save(run_dir)
            jobs = _start(plan, remaining)
    return Submission(run_dir, jobs, is_new=True, message="resumed" if is_resumed else "submitted")


def _start(plan: Plan, remaining: list[Stage]) -> list[tuple[str, str]]:
    (plan.run_dir / CANCELLED_FILE).unlink(missing_ok=True)
    if plan.config.cluster.kind is ClusterKind.local:
        (plan.run_dir / JOBS_FILE).unlink(missing_ok=True)
        return [("local", str(start_local(plan.run_dir, plan.request.id)))]
    ids = submit_slurm(slurm_jobs(plan))
    started = [(stage.kind, job_id) for stage, job_id in zip(remaining, ids, strict=True)]
    document = {
        "request": plan.request.id,
        "jobs": [{"stage": kind, "id": job_id} for kind, job_id in started],
    }
    write_json(plan.run_dir / JOBS_FILE, document)
    return started


def _busy(run_dir: Path) -> str:
    """Who works on a run, in words; empty if nobody does."""
    owner = Owner.load(run_dir)
    if owner and owner.is_alive():
        return f"already running: process {owner.pid} on {owner.host}"
    # An attempt on a node that died looks alive for ever; of SLURM's jobs SLURM knows.
    for living in living_attempts(run_dir):
        if not living.slurm_job_id:
            return f"already running: attempt {living.number}, process {living.pid} on {living.host}"
    document = read_json(run_dir / JOBS_FILE)
    if document and (ids := living_jobs([job["id"] for job in document["jobs"]])):
        return f"already in SLURM's queue: job {', '.join(sorted(ids))}"
    return ""


def _make(run_dir: Path) -> None:
    """Make a run directory; refuse one that is not ours."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"`paths.runs` must be a folder that can be written, but `{run_dir.parent}` is not.",
            where=str(error),
            fix="paths.runs=/where/you/may/write",
        ) from error
    owner = run_dir.stat().st_uid
    if owner != os.getuid():
        raise RefusedError(
            f"run `{run_dir.name}` must be yours to resume, but belongs to user {owner}.",
            where=str(run_dir),
            fix="paths.runs=/a/folder/of/your/own",
        )


def _write_run(run_dir: Path, config: Config, header: RunHeader) -> None:
    """Store the configuration; a run that exists keeps its own but for what describes the site."""
    if (run_dir / CONFIG_FILE).exists():
        if load_header(run_dir).fingerprint != header.fingerprint:
            raise RefusedError(
                f"run `{run_dir.name}` must be of these photographs, but was made for others.",
                where=str(run_dir),
                fix="paths.runs=/another/folder",
            )
        config = with_site_of(load(run_dir), config)
    store(config, header, run_dir)


def _refuse_missing_boxes(plan: Plan, runs: Path) -> None:
    """Training alone builds on boxes that must be there."""
    if plan.request.command != "train" or not plan.proposals:
        return
    if not Stage("merge", plan.proposals.id).is_done(runs):
        raise RefusedError(
            f"the boxes of `{plan.proposals.id}` must be made before training, but are not.",
            where=str(runs / plan.proposals.id),
            fix="univip submit pipeline ...  # the same overrides: boxes, training and evaluation",
        )


def _environment() -> dict[str, object]:
    """With what code and versions a run was asked for."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "host": platform.node(),
        "packages": versions,
        "git": _git_commit(),
    }


def _git_commit() -> str:
    """Commit of this package's checkout, with `-dirty` if it was changed since; empty without one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """One submission at a time per run; the others wait."""
    with (run_dir / "submit.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _umask(mode: str) -> Iterator[None]:
    """Everything made here, and by the processes started here, is open to no more than `paths.mode` says."""
    before = os.umask(0o777 & ~int(mode, 8))
    try:
        yield
    finally:
        os.umask(before)
