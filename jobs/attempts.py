"""Attempts: one execution of a run, fenced by a number.

An attempt exists once its filled folder was renamed to `attempts/NNNN`, which succeeds for one process only;
its `attempt.json` says who owns it. A run is *running* while the owner of one of its attempts lives, judged
by host, pid and the start time of that pid - never by the age of a file, which lies on network file systems
and after a suspended laptop. Torch-free: `univip status` reads the same files.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.outcomes import Cause, ExitCode, write_json
from univip.errors import UnivipError

# Made in the attempt's folder by the agent or by `univip cancel`; rank 0 looks for it.
STOP_FILE = "stop"


class RunBusyError(UnivipError):
    """Another process owns this run."""


@dataclass
class Attempt:
    """One execution of one stage of a run; `attempt.json` is this object.

    Attributes:
        number: 1, 2, ... within the run directory.
        start_ticks: Start time of `pid` in clock ticks since boot; tells a reused pid from the owner.
        exit_code: None while it runs, or where it died without a word.
        cause: One of `jobs.outcomes.Cause`, once it ended.
        message: The cause in words; empty where it ended well.
    """

    number: int
    stage: str
    host: str
    pid: int
    start_ticks: int
    slurm_job_id: str
    started: float
    ended: float | None = None
    exit_code: int | None = None
    cause: str = ""
    message: str = ""

    def directory(self, run_dir: Path) -> Path:
        """Folder of this attempt's outcome files and logs."""
        return run_dir / "attempts" / f"{self.number:04d}"

    def round_directory(self, run_dir: Path, number: int) -> Path:
        """Where the workers of one round leave their outcomes and output."""
        return self.directory(run_dir) / f"round-{number:02d}"

    def save(self, run_dir: Path) -> None:
        """Write `attempt.json`, whole or not at all."""
        write_json(self.directory(run_dir) / "attempt.json", asdict(self))

    def is_alive(self) -> bool:
        """Whether its owner lives; said of every owner on another host, where only SLURM could tell."""
        if self.ended is not None:
            return False
        if self.host != socket.gethostname():
            return True
        return start_ticks(self.pid) == self.start_ticks


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot, 0 if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The second field is the command in parentheses and may hold spaces; the state is the first field after
    # it.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


_known: dict[str, tuple[tuple[int, int], Attempt]] = {}  # by path: inode and time of the file, its content


def read_attempts(run_dir: Path) -> list[Attempt]:
    """Every attempt of a run in order; one whose file is not written yet is left out."""
    folder = f"{run_dir}/attempts"
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.isdigit())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (_read(f"{folder}/{name}/attempt.json") for name in names)
    return [attempt for attempt in found if attempt is not None]


def _read(path: str) -> Attempt | None:
    """One attempt, read again only if its file is another one: an array leaves thousands of them."""
    try:
        status = os.stat(path)  # noqa: PTH116 - thousands of times
        stamp = status.st_ino, status.st_mtime_ns
        known = _known.get(path)
        if known is None or known[0] != stamp:
            known = _known[path] = stamp, Attempt(**json.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    return known[1]


def living_attempts(run_dir: Path) -> list[Attempt]:
    """Attempts whose owner lives."""
    return [attempt for attempt in read_attempts(run_dir) if attempt.is_alive()]


@contextmanager
def attempt(run_dir: Path, stage: str, *, exclusive: bool = True) -> Iterator[Attempt]:
    """Open the next attempt of a run and write how it ended.

    Args:
        run_dir: The run directory.
        stage: Kind of work, such as `train`.
        exclusive: Refuse while another attempt lives. Elements of an array are not exclusive.

    Raises:
        RunBusyError: If the run has a living owner.
    """
    (run_dir / "attempts").mkdir(exist_ok=True)
    mine = _claim(run_dir, stage)
    if exclusive:
        others = [
            other
            for other in living_attempts(run_dir)
            if other.number < mine.number
            and not _was_requeued(other, mine)
            # One that died on another host looks alive for ever; whoever needs its shard sees that it is
            # missing.
            and not other.stage.startswith("shard:")
        ]
        if others:
            mine.ended, mine.exit_code, mine.cause = time.time(), ExitCode.BUSY, Cause.BUSY
            mine.save(run_dir)
            raise RunBusyError(
                f"run `{run_dir.name}` is already running: process {others[0].pid} on {others[0].host}",
                where=str(others[0].directory(run_dir)),
                fix=f"univip cancel {run_dir.name}",
            )
    try:
        yield mine
    finally:
        mine.ended = time.time()
        mine.save(run_dir)


def _was_requeued(other: Attempt, mine: Attempt) -> bool:
    """Whether `other` was an earlier execution of this SLURM job, which may have died on another host.

    SLURM executes a job once at a time. Tasks of one execution start together; the first decides.
    """
    is_first = os.environ.get("SLURM_PROCID", "0") == "0"
    return is_first and mine.slurm_job_id != "" and other.slurm_job_id == mine.slurm_job_id


def _claim(run_dir: Path, stage: str) -> Attempt:
    """Take the next free number: renaming a filled folder onto it succeeds for one process only."""
    folder = run_dir / "attempts"
    mine = Attempt(
        number=0,
        stage=stage,
        host=socket.gethostname(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        slurm_job_id=os.environ.get("SLURM_JOB_ID", ""),
        started=time.time(),
    )
    claim = folder / f".claim-{uuid.uuid4().hex}"
    claim.mkdir()  # not `mkdtemp`, whose folder is private whatever `paths.mode` says
    while True:
        mine.number = 1 + max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)
        write_json(claim / "attempt.json", asdict(mine))
        try:
            claim.rename(mine.directory(run_dir))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return mine
