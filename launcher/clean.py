"""What of the runs can go: what was turned away, torn or can be made again, and runs as a whole.

Only of runs that nobody works on and that are ours; that is looked at again, under the lock that a submission
takes, before anything is removed. What is shown of a run in SLURM may be half a minute old, or what another
user's squeue said, so SLURM itself is asked then whether its jobs have ended. A checkpoint that a capsule
needs stays, and so do logs, journals, ledgers and results, which tell what happened.
"""

from __future__ import annotations

import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.attempts import read_attempts
from jobs.config import FILE_NAME as CONFIG_FILE
from jobs.config import read_plain
from jobs.requests import Request
from launcher.errors import RefusedError, SlurmUnavailableError
from launcher.freeze import FOLDER as CODE_FOLDER
from launcher.freeze import frozen
from launcher.runs import SubmittedJobs, all_runs, is_foreign, refuse_foreign
from launcher.slurm import living_jobs
from launcher.states import read_state
from launcher.submission import lock
from univip.checkpoint import layout

_DOCTOR_S = 3600.0
_REMOVED = ".removed-"  # a run on its way out: renamed first, so that half of one is never met


@dataclass(frozen=True)
class Waste:
    """Things of one kind in one run that can go.

    Attributes:
        run_dir: The run.
        what: In words, for a count before it.
        paths: Files and folders.
    """

    run_dir: Path
    what: str
    paths: list[Path]

    def size_bytes(self) -> int:
        """Of all of it."""
        return sum(map(_size_bytes, self.paths))


def leftovers(run_dir: Path) -> list[Waste]:
    """What can go of a run that stays; nothing of one that somebody works on, or that is another user's."""
    if is_foreign(run_dir) or not read_state(run_dir).is_over():
        return []
    checkpoints = run_dir / "checkpoints"
    abandoned = [
        path
        for path in sorted((checkpoints / layout.ABANDONED).glob("*/*"))
        if not (path / layout.PINNED).exists()
    ]
    # Of `univip.atomic`, of checkpoints cut off while they were written, of attempts that were not opened.
    torn = [*run_dir.rglob(".*.tmp"), *checkpoints.glob(f"{layout.TEMPORARY_PREFIX}*")]
    torn += (run_dir / "attempts").glob(".claim-*")
    jobs = [path for path in (run_dir / "submitit").glob("*") if path.suffix in (".pkl", ".sh", ".save_tmp")]
    code = frozen(run_dir)
    copies = [path for path in (run_dir / CODE_FOLDER).glob("[!.]*") if code and path.stem != code.name]
    found = {
        "abandoned checkpoints": abandoned,
        "leftovers of writes that were cut off": [path for path in torn if not _is_in(path, abandoned)],
        "files of jobs that have ended": jobs,
        "copies of code that is used no more": copies,
    }
    return [Waste(run_dir, what, sorted(set(paths))) for what, paths in found.items() if paths]


def whole(run_dir: Path) -> Waste:
    """A run as a whole.

    Raises:
        RefusedError: If somebody works on it, or on a run that trains on its boxes, or it is another user's.
    """
    refuse_foreign(run_dir, "remove", fix=f"ask its owner; stat -c %U {shlex.quote(str(run_dir))}")
    users = _users(run_dir)
    for run in users:
        if not read_state(run).is_over():
            raise RefusedError(
                f"run `{run.name}` must not be running when `{run_dir.name}` is removed, but is.",
                where=str(run),
                fix=f"univip cancel {shlex.quote(str(run))}",
            )
    needed = f", on whose boxes {len(users) - 1} runs were trained" if users[1:] else ""
    return Waste(run_dir, f"run as a whole{needed}", [run_dir])


def remains(runs: Path) -> Waste | None:
    """What commands that were killed have left in the folder of the runs itself."""
    left = list(runs.glob(f"{_REMOVED}*"))
    # A doctor may still be waiting for its job.
    left += [path for path in runs.glob(".doctor-*") if time.time() - path.stat().st_mtime > _DOCTOR_S]
    mine = [path for path in left if not is_foreign(path)]
    return Waste(runs, "leftovers of commands that were cut off", sorted(mine)) if mine else None


def remove(waste: Waste, again: Callable[[], list[Waste]]) -> None:
    """Remove it, if that is still right.

    Args:
        waste: What was found.
        again: Looks once more while nobody can submit the run; what it no longer finds stays.

    Raises:
        RefusedError: If a job of the run waits or runs in SLURM.
        SlurmUnavailableError: If SLURM does not say whether one does.
    """
    run_dir = waste.run_dir
    if not (run_dir / CONFIG_FILE).exists():  # the folder of the runs
        _remove(waste.paths)
        return
    with lock(run_dir):
        still = {path for each in again() for path in each.paths}
        if still:
            _refuse_living_jobs(_users(run_dir) if run_dir in still else [run_dir])
        if run_dir in still:
            doomed = run_dir.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
            run_dir.rename(doomed)
            _remove([doomed])
        else:
            _remove([path for path in waste.paths if path in still])


def last_used(run_dir: Path) -> float:
    """When somebody asked for a run or worked on it last, Unix, s."""
    request = Request.load(run_dir)
    times = [request.submitted if request else (run_dir / CONFIG_FILE).stat().st_mtime]
    return max([*times, *(each.ended or each.started for each in read_attempts(run_dir))])


def _users(run_dir: Path) -> list[Path]:
    """A run, and those that train on its boxes."""
    return [run_dir, *(run for run in all_runs(run_dir.parent) if _boxes_of(run) == run_dir.name)]


def _refuse_living_jobs(runs: list[Path]) -> None:
    """Ask SLURM about runs that were given to it, the jobs of boxes made on the way included."""
    for run in runs:
        jobs = SubmittedJobs.load(run)
        if jobs is None:
            continue
        try:
            living = living_jobs(list(jobs.ids.values()))
        except SlurmUnavailableError as error:
            raise SlurmUnavailableError(
                f"SLURM must say that no job of run `{run.name}` lives before files go: {error.what}",
                where=error.where,
                fix=error.fix,
            ) from error
        if living:
            raise RefusedError(
                f"run `{run.name}` must have no job in SLURM before files go, but has "
                f"{', '.join(sorted(living))}.",
                where=str(run),
                fix=f"univip cancel {shlex.quote(str(run))}",
            )


def _boxes_of(run_dir: Path) -> str:
    return str(read_plain(run_dir).get("run", {}).get("proposals", ""))


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_in(path: Path, folders: list[Path]) -> bool:
    return any(folder in path.parents for folder in folders)


def _size_bytes(path: Path) -> int:
    return sum(each.lstat().st_size for each in _files(path))


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (each for each in path.rglob("*") if not each.is_dir())
    else:
        yield path
