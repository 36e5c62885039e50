"""Carries a plan out: makes the run directories, refuses twins, and hands the stages over.

Two shells that submit the same request at once meet at a lock in the run directory: the second one waits
until the first is through, finds the run owned, and reports it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.attempts import living_attempts, read_attempts
from jobs.config import FILE_NAME as CONFIG_FILE
from jobs.config import ClusterKind, Config, RunHeader, RunKind, load, load_header, store, with_site_of
from jobs.identity import differing, is_site
from jobs.locks import locked
from jobs.outcomes import write_json
from jobs.requests import CANCELLED_FILE, Request, Stage
from launcher.admission import TOO_MANY_JOBS, explain_refusal, refuse_endless
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.freeze import ENVIRONMENT_FILE, freeze, frozen
from launcher.local import start_local
from launcher.plan import Plan
from launcher.queue import ask_anew
from launcher.runs import JOBS_FILE, Owner, SubmittedJobs, free_sibling, is_foreign, refuse_foreign
from launcher.sbatch import slurm_jobs, submit_slurm
from launcher.slurm import array_limit, living_jobs, withdraw_jobs
from univip.checkpoint import layout
from univip.config import SEARCH
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


def submit(
    plan: Plan,
    overrides: Sequence[str],
    *,
    forks: bool = False,
    replaces: bool = False,
    keeps_code: bool = False,
) -> Submission:
    """Start what is not done of a plan, unless somebody works on it already.

    Args:
        plan: What was asked for.
        overrides: As typed; kept beside the configuration.
        forks: Whether the plan is of a fork, whose directory must be new.
        replaces: Put aside the run that there is, and begin anew.
        keeps_code: Run the code of the request before, as SLURM's own requeue does, and not that of now.

    Raises:
        ConfigError: If the folder of runs cannot be written.
        RefusedError: If the run belongs to another user, lacks what the request builds on, or is to be
            replaced while it runs.
        SlurmUnavailableError: If SLURM is asked for and refuses.
    """
    runs = Path(plan.config.paths.runs)
    run_dir = plan.run_dir
    _refuse_missing_checkpoint(plan, overrides)
    _refuse_missing_boxes(plan, overrides)
    _make_root(runs)
    with plan.config.paths.as_open():
        if replaces and (run_dir / CONFIG_FILE).exists():
            plan = replace(plan, header=replace(plan.header, origin=_put_aside(run_dir)))
        _make(run_dir, is_new=forks and bool(plan.header.origin))
        with lock(run_dir):
            if message := _busy(run_dir, plan.config.cluster.kind):
                _refuse_another_evaluation(plan, message)
                return Submission(run_dir, [], is_new=False, message=f"{message}{_not_taken_up(plan)}")
            remaining = plan.request.remaining(runs)
            if (run_dir / CONFIG_FILE).exists() and not remaining:
                return Submission(run_dir, [], is_new=False, message=f"done already{_not_taken_up(plan)}")
            if plan.config.cluster.kind is ClusterKind.slurm:
                plan = replace(plan, most_elements=array_limit())
                refuse_endless(slurm_jobs(plan, remaining), plan.config.cluster)
            kept = _kept(plan)
            plan = _remember_unfinished(plan)
            code = _write_down(plan, overrides, keeps_code=keeps_code)
            message = "submitted" if Request.load(run_dir) is None else f"resumed{kept}"
            if replaces and plan.header.origin:
                message += f"; the run that there was is {plan.header.origin} now"
            plan.request.save(run_dir)
            jobs = _start(plan, remaining, code)
    return Submission(run_dir, jobs, is_new=True, message=message)


def _write_down(plan: Plan, overrides: Sequence[str], *, keeps_code: bool) -> Path:
    """Write into the run directory what was asked for; the copy of the code that its jobs run."""
    run_dir = plan.run_dir
    _write_run(run_dir, plan.config, plan.header)
    if plan.proposals:
        boxes = run_dir.parent / plan.proposals.id
        _make(boxes)
        if not _is_worked_on(boxes, plan.config.cluster.kind):
            _write_run(boxes, plan.config, plan.proposals)
    (run_dir / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides), encoding="utf-8")
    code = (frozen(run_dir) if keeps_code else None) or freeze(run_dir)
    write_json(run_dir / ENVIRONMENT_FILE, {**_environment(), "code": code.name})
    return code


def make_run(config: Config, header: RunHeader) -> Path:
    """Make a run directory without starting anything, for boxes that a command makes by itself.

    Raises:
        ConfigError: If the folder of runs cannot be written.
        RefusedError: If the run belongs to another user.
    """
    runs = Path(config.paths.runs)
    run_dir = runs / header.id
    _make_root(runs)
    with config.paths.as_open():
        _make(run_dir)
        with lock(run_dir):
            _write_run(run_dir, config, header)
            write_json(run_dir / ENVIRONMENT_FILE, _environment())
    return run_dir


def _start(plan: Plan, remaining: list[Stage], code: Path) -> list[tuple[str, str]]:
    for directory in plan.request.directories(plan.run_dir):
        if is_foreign(directory):  # of boxes that are only read
            continue
        (directory / CANCELLED_FILE).unlink(missing_ok=True)
    if plan.config.cluster.kind is ClusterKind.local:
        (plan.run_dir / JOBS_FILE).unlink(missing_ok=True)
        return [("local", str(start_local(plan.run_dir, plan.request.id, code)))]
    if plan.proposals is None:
        return _start_in_slurm(plan, remaining, code, {})
    boxes = plan.run_dir.parent / plan.proposals.id
    with lock(boxes):  # another training on the same photographs may be submitted at the same time
        return _start_in_slurm(plan, remaining, code, _boxes_under_way(boxes))


def _start_in_slurm(
    plan: Plan, remaining: list[Stage], code: Path, under_way: dict[str, str]
) -> list[tuple[str, str]]:
    """Submit the stages, and write down which job does which; in the run of the boxes as well.

    Args:
        plan: What was asked for.
        remaining: Its stages that are not done.
        code: What they run.
        under_way: Jobs, by stage kind, that make the same boxes already.
    """
    run_dir = plan.run_dir
    others = [stage for stage in remaining if stage.run != run_dir.name and stage.kind in under_way]
    mine = [stage for stage in remaining if stage not in others]

    def note(ids: list[str]) -> list[tuple[Stage, str]]:
        found = [*((stage, under_way[stage.kind]) for stage in others), *zip(mine, ids, strict=False)]
        for run in {stage.run for stage in remaining} | {run_dir.name}:
            request = Request.load(run_dir.parent / run) or plan.request
            jobs = [
                {"stage": stage.kind, "run": stage.run, "id": job_id}
                for stage, job_id in found
                if run in (run_dir.name, stage.run)
            ]
            write_json(run_dir.parent / run / JOBS_FILE, {"request": request.id, "jobs": jobs})
        return found

    note([])
    ids = _submit(plan, mine, code, after=under_way.get("merge", ""), note=note)
    ask_anew(run_dir.parent)
    return [(stage.kind, job_id) for stage, job_id in note(ids)]


def _submit(
    plan: Plan, stages: list[Stage], code: Path, *, after: str, note: Callable[[list[str]], object]
) -> list[str]:
    """Submit jobs, with fewer and longer elements of the array where a user may not have that many."""
    while True:
        try:
            return submit_slurm(slurm_jobs(plan, stages), code, after=after, note=note)
        except SlurmUnavailableError as error:
            elements = min(len(plan.shards_left), plan.most_elements)
            has_array = any(stage.kind == "shards" for stage in stages) and elements > 1
            if not (has_array and TOO_MANY_JOBS in error.what):
                raise explain_refusal(error, {stage.kind for stage in stages}, plan.config.cluster) from error
            plan = replace(plan, most_elements=elements // 2)
            refuse_endless(slurm_jobs(plan, stages), plan.config.cluster)


def _boxes_under_way(boxes: Path) -> dict[str, str]:
    """Jobs that make these boxes for another request, by stage kind; none unless they will be merged."""
    jobs = SubmittedJobs.load(boxes)
    if jobs is None or not jobs.ids:
        return {}
    living = living_jobs(list(jobs.ids.values()))
    if "merge" not in jobs.ids:  # of a submission that was killed half-way: nobody would merge what they make
        withdraw_jobs(sorted(living))
        return {}
    return jobs.ids if jobs.ids["merge"] in living else {}


def _busy(run_dir: Path, kind: ClusterKind) -> str:
    """Who works on a run, in words; empty if nobody does."""
    owner = Owner.load(run_dir)
    if owner and owner.is_alive():
        return f"already running: process {owner.pid} on {owner.host}"
    for living in living_attempts(run_dir):
        # A stage whose supervisor was killed stops by itself, and the next supervisor waits for that. On a
        # node that died it looks alive for ever; of SLURM's jobs SLURM knows.
        is_waited_for = kind is ClusterKind.local and living.host == socket.gethostname()
        if not living.slurm_job_id and not is_waited_for:
            return f"already running: attempt {living.number}, process {living.pid} on {living.host}"
    jobs, request = SubmittedJobs.load(run_dir), Request.load(run_dir)
    if request and not request.remaining(run_dir.parent):
        return ""  # its last job may still be ending
    if jobs and (ids := living_jobs(jobs.of(run_dir.name))):
        return f"already in SLURM's queue: job {', '.join(sorted(ids))}"
    return ""


def _refuse_another_evaluation(plan: Plan, busy: str) -> None:
    """Of two evaluations that differ the second one must not look done when the first one is."""
    differ = [key for key, _, _ in _differing(plan) if key.startswith("evaluate.")]
    if plan.request.command == "evaluate" and differ:
        run = shlex.quote(str(plan.run_dir))
        raise RefusedError(
            f"`{plan.run_dir.name}` must be free for an evaluation with other `{differ[0]}`, but is {busy}.",
            where=str(plan.run_dir),
            fix=f"univip logs {run} -f  # to its end; then the same command again",
        )


def _is_worked_on(boxes: Path, kind: ClusterKind) -> bool:
    """Whether another request makes these boxes, by the configuration that they have.

    Of an element of an array whose node died SLURM knows; from its files it looks alive for ever.
    """
    return any(not living.slurm_job_id for living in living_attempts(boxes)) or bool(_busy(boxes, kind))


def _put_aside(run_dir: Path) -> str:
    """Give a run that nobody works on another name, under which it can be looked at and resumed.

    Its files are changed first: what a process leaves that is killed in between, the next submission makes
    good.

    Returns:
        That name; empty if another shell has put the run aside meanwhile, or nothing of it has begun.
    """
    refuse_foreign(run_dir)
    with lock(run_dir):
        if not (run_dir / CONFIG_FILE).exists():
            return ""
        if message := _busy(run_dir, ClusterKind.slurm):
            raise RefusedError(
                f"run `{run_dir.name}` must not be running to be replaced, but is {message}.",
                where=str(run_dir),
                fix=f"univip cancel {shlex.quote(str(run_dir))}  # then --replace, or --fork",
            )
        if not read_attempts(run_dir):  # such as one that SLURM has refused
            return ""
        aside = free_sibling(run_dir, "old")
        store(load(run_dir), replace(load_header(run_dir), id=aside.name), run_dir)
        if request := Request.load(run_dir):
            request.renamed(run_dir.name, aside.name).save(run_dir)
        (run_dir / JOBS_FILE).unlink(missing_ok=True)  # they have ended, and name the run by its old id
        run_dir.rename(aside)
    return aside.name


def _kept(plan: Plan) -> str:
    """In words, what the run keeps of its own though the same request would now mean something else."""
    kept = [f"{key}={mine}, not {asked}" for key, mine, asked in _differing(plan) if not is_site(key)]
    return f" as it was begun, with {'; '.join(kept)}: --fork begins anew" if kept else ""


def _not_taken_up(plan: Plan) -> str:
    """In words, what was asked for otherwise of a run that goes on, or stays, as it is."""
    asked = [
        f"{key}={asked}, which is {mine}"
        for key, mine, asked in _differing(plan)
        if is_site(key) and key != "paths.runs"
    ]
    return f"; not taken up: {'; '.join(asked)}" if asked else ""


def _differing(plan: Plan) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ: in the run that there is, and as asked for now."""
    if (plan.run_dir / CONFIG_FILE).exists():
        for key, values in differing(asdict(load(plan.run_dir)), asdict(plan.config)).items():
            yield key, *values


def _remember_unfinished(plan: Plan) -> Plan:
    """An evaluation alone must not make a run whose training is not through look done."""
    before = Request.load(plan.run_dir)
    if plan.request.command != "evaluate" or before is None:
        return plan
    unfinished = before.unfinished or before
    if unfinished.command == "evaluate" or not unfinished.remaining(plan.run_dir.parent):
        return plan
    return replace(plan, request=replace(plan.request, unfinished=unfinished))


def _make_root(runs: Path) -> None:
    """Make the folder of the runs, which `paths.mode` is not about."""
    with _writable(runs):
        runs.mkdir(parents=True, exist_ok=True)


def _make(run_dir: Path, *, is_new: bool = False) -> None:
    """Make a run directory; refuse one that is not ours, or not new where it must be."""
    try:
        with _writable(run_dir.parent):
            run_dir.mkdir(exist_ok=not is_new)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileExistsError) or not is_new:
            raise
        raise RefusedError(
            f"run `{run_dir.name}` must be new, but another shell has just begun it.",
            where=str(run_dir),
            fix="the same command again",
        ) from error
    refuse_foreign(run_dir)


@contextmanager
def _writable(runs: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"`paths.runs` must be a folder that can be written, but `{runs}` is not.",
            where=str(error),
            fix="paths.runs=/where/you/may/write",
        ) from error


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
        header = replace(header, origin=header.origin or load_header(run_dir).origin)
    store(config, header, run_dir)


def _refuse_missing_boxes(plan: Plan, overrides: Sequence[str]) -> None:
    """Training alone builds on boxes that must be there, and so does everything on imported ones."""
    boxes = plan.header if plan.header.kind is RunKind.proposals else plan.proposals
    is_imported = plan.config.proposals.source != SEARCH
    if boxes is None or not (plan.request.command == "train" or is_imported):
        return
    runs = plan.run_dir.parent
    if not Stage("merge", boxes.id).is_done(runs):
        rest = [word for word in overrides if not word.startswith("proposals.source=")]
        again = ["proposals", "import", "FILE", *rest] if is_imported else ["submit", "pipeline", *overrides]
        raise RefusedError(
            f"the boxes of `{boxes.id}` must be {'imported' if is_imported else 'made'} before training, "
            "but are not.",
            where=str(runs / boxes.id),
            fix=shlex.join(["univip", *again]),
        )


def _refuse_missing_checkpoint(plan: Plan, overrides: Sequence[str]) -> None:
    """An evaluation alone builds on a checkpoint that must be there."""
    if plan.request.command != "evaluate" or layout.data_steps(plan.run_dir / "checkpoints"):
        return
    is_run = (plan.run_dir / CONFIG_FILE).exists()
    again = ["resume", str(plan.run_dir)] if is_run else ["submit", "pipeline", *overrides]
    raise RefusedError(
        f"run `{plan.run_dir.name}` must have a checkpoint to evaluate, but has none.",
        where=str(plan.run_dir / "checkpoints"),
        fix=shlex.join(["univip", *again]),
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
def lock(run_dir: Path) -> Iterator[None]:
    """One submission at a time per run; the others wait."""
    path = run_dir / "submit.lock"
    while True:
        run_dir.mkdir(exist_ok=True)
        with locked(path) as file:
            # Whoever held it may have put the run aside, and the lock with it.
            if _is_at(path, file.fileno()):
                yield
                return


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file still is the one of that name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
