"""Attempts: one execution of a run, fenced by a number.

An attempt exists once its filled folder was renamed to `attempts/NNNN`, which succeeds for one process only;
its `attempt.json` says who owns it. A run is *running* while the owner of one of its attempts lives, judged
by host, pid and the start time of that pid, or by the state of its job in SLURM - never by the age of a file,
which lies on network file systems and after a suspended laptop. Torch-free: `univip status` reads the same
files.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jobs import slurm
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
        slurm_job_id: Empty without SLURM.
        slurm_restart: How often that job had been requeued before.
        slurm_node: What SLURM calls its node, where `host` may have a domain; empty without SLURM, and in
            files that were written before there was this field.
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
    slurm_restart: int = 0
    slurm_node: str = ""

    @property
    def node(self) -> str:
        """Its node by the name to ask SLURM with."""
        return self.slurm_node or self.host

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
        names = sorted((entry.name for entry in os.scandir(folder) if entry.name.isdigit()), key=int)
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
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            known = _known[path] = stamp, Attempt(**known_fields(Attempt, document))
    except FileNotFoundError:
        return None
    return known[1]


def known_fields(schema: type, document: dict[str, Any]) -> dict[str, Any]:
    """What `schema` has of a document: another version of this package may have written more.

    The jobs of one run may be of two versions, since a job that waits keeps the code it was submitted with.
    """
    names = {each.name for each in fields(schema)}
    return {name: value for name, value in document.items() if name in names}


def newest_attempt(run_dir: Path) -> int:
    """Number of the newest attempt of a run, 0 if there is none."""
    return max((attempt.number for attempt in read_attempts(run_dir)), default=0)


def living_attempts(run_dir: Path) -> list[Attempt]:
    """Attempts whose owner lives."""
    return [attempt for attempt in read_attempts(run_dir) if attempt.is_alive()]


def own_view(number: int, stage: str, here: slurm.Execution) -> Attempt:
    """An attempt with this process as its owner: of the one that opens it, or of an agent on another node."""
    return Attempt(
        number=number,
        stage=stage,
        host=socket.gethostname(),
        pid=os.getpid(),
        start_ticks=start_ticks(os.getpid()),
        slurm_job_id=here.job_id,
        slurm_restart=here.restart,
        slurm_node=here.node_name,
        started=time.time(),
    )


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
        for other in living_attempts(run_dir):
            # One that died on another host looks alive for ever; whoever needs its shard sees that it is
            # missing.
            if other.number > mine.number or other == mine or other.stage.startswith("shard:"):
                continue
            if not _is_lost(other, mine):
                mine.ended, mine.exit_code, mine.cause = time.time(), ExitCode.BUSY, Cause.BUSY
                mine.save(run_dir)
                raise RunBusyError(
                    f"run `{run_dir.name}` is already running: process {other.pid} on {other.host}",
                    where=str(other.directory(run_dir)),
                    fix=f"univip cancel {shlex.quote(str(run_dir))}",
                )
    if mine.slurm_job_id:
        _close_lost(run_dir, mine)
    try:
        yield mine
    finally:
        mine.ended = time.time()
        mine.save(run_dir)


def _is_lost(other: Attempt, mine: Attempt) -> bool:
    """Whether an attempt on another host, which cannot be looked at, is known to SLURM to have ended."""
    if not other.slurm_job_id or other.host == socket.gethostname():
        return False
    if other.slurm_job_id == mine.slurm_job_id:
        # SLURM executes a job once at a time; within one execution the first node's task opens attempts.
        return other.slurm_restart < mine.slurm_restart
    return slurm.is_on_nodes(other.slurm_job_id, other.slurm_restart) is False


def _close_lost(run_dir: Path, mine: Attempt) -> None:
    """Write down how earlier attempts ended that SLURM ended before they could do so themselves."""
    for other in read_attempts(run_dir):
        is_same_job = other.slurm_job_id == mine.slurm_job_id
        if other.number >= mine.number or other.ended is not None or not other.slurm_job_id:
            continue
        if other.stage.startswith("shard:") and not is_same_job:  # it may live, and there may be thousands
            continue
        if is_same_job and other.slurm_restart == mine.slurm_restart:
            why = Cause.KILLED, f"process {other.pid} on {other.host} was killed"
        else:
            why = slurm.why_ended(other.slurm_job_id, other.slurm_restart, other.node)
        other.ended, other.cause, other.message = time.time(), *why
        other.save(run_dir)


def _claim(run_dir: Path, stage: str) -> Attempt:
    """Take the next free number: renaming a filled folder onto it succeeds for one process only."""
    folder = run_dir / "attempts"
    mine = own_view(0, stage, slurm.Execution.here())
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
