"""SLURM's queue as the runs of one folder see it: asked at most once in 30 s, by whoever needs it first.

Every `status`, `logs -f` and `--wait` reads one small file beside the runs; the one that finds it too old
renews it. So a hundred runs watched from ten shells cost SLURM one call in 30 s. squeue is asked first: it
knows what waits and runs, and for some minutes what ended. For jobs that have left it, the next call is one
of sacct, where there is accounting; how a job ended is remembered, so it is asked for once.

In a folder that several users share, whoever looks keeps a file of their own for the runs of each: another
user may not be allowed to read it, or may not be told of the same jobs (`PrivateData=jobs`).
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from jobs.attempts import RunBusyError
from jobs.locks import locked
from jobs.outcomes import read_json
from launcher.errors import SlurmUnavailableError
from launcher.slurm import JobState, accounted, queue
from univip.atomic import write_text

INTERVAL_S = 30.0
_ASK_AGAIN_S = 600.0  # of a job that sacct did not know; it may be late
_PATIENCE_S = 10.0  # with whoever asks just now, where file locks are missing: it may have died
_POLL_S = 0.1

_logger = logging.getLogger(__name__)


@dataclass
class Queue:
    """What SLURM said last.

    Attributes:
        time: When it was asked (Unix, s).
        error: Why it did not answer then; what it said before still stands.
        jobs: Every job in squeue, by id.
        ended: How jobs that runs of this folder asked for have ended, by id.
        missing: Jobs asked for that squeue does not know (any more), and when sacct is to be asked for them.
        seen_ended: When that was seen first (Unix, s).
    """

    time: float = 0.0
    error: str = ""
    jobs: dict[str, JobState] = field(default_factory=dict)
    ended: dict[str, JobState] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)
    seen_ended: dict[str, float] = field(default_factory=dict)

    def get(self, job_id: str) -> JobState | None:
        """What SLURM says of a job; None if it knows nothing of it, or did not answer yet."""
        return self.jobs.get(job_id) or self.ended.get(job_id)

    def is_news(self, job_id: str) -> bool:
        """Whether nobody has asked for this job yet, or not since it has ended."""
        if job := self.jobs.get(job_id):
            return job.has_ended and job_id not in self.ended
        return job_id not in self.ended and job_id not in self.missing


def look(runs: Path, job_ids: Collection[str], *, user: int | None = None) -> Queue:
    """The queue, at most 30 s old, or older if SLURM does not answer.

    Args:
        runs: Folder of the runs; the answer is kept there.
        job_ids: What the caller wants to know about.
        user: Id of the user who submitted them; left out, that of this process.
    """
    user = os.getuid() if user is None else user
    found = _newest(runs, user)
    if _is_fresh(found) and not any(found.is_news(job_id) for job_id in job_ids):
        return found
    try:
        with ExitStack() as held:
            _lock(runs, user, held)
            found = _newest(runs, user)  # while this waited, another process may have asked
            _ask(found, job_ids, user)
            _write(runs, user, found)
            _unwritten.pop((runs, user), None)
    except (OSError, RunBusyError):  # somebody else's folder, a full disk, or a process that died as it asked
        _unwritten[runs, user] = found  # for this process alone
        _ask(found, job_ids, user)
    return found


def ask_anew(runs: Path) -> None:
    """Let the next look ask squeue: this process has just changed the queue."""
    user = os.getuid()
    # If it cannot be written down, a look may be 30 s late.
    with suppress(OSError, RunBusyError), ExitStack() as held:
        _lock(runs, user, held)
        found = _newest(runs, user)
        found.time = 0.0
        _write(runs, user, found)
        _unwritten.pop((runs, user), None)


_unwritten: dict[tuple[Path, int], Queue] = {}  # what this process remembers for itself


def _lock(runs: Path, user: int, held: ExitStack) -> None:
    """Keep other processes from asking until `held` is left.

    Raises:
        RunBusyError: If the marker of another process stands for the lock, and stays.
    """
    path = _path(runs, user).with_suffix(".lock")
    ends = time.monotonic() + (0.0 if (runs, user) in _unwritten else _PATIENCE_S)  # not in vain once more
    while True:
        try:
            held.enter_context(locked(path, wait=False))
            return
        except RunBusyError as error:
            if error.where == str(path):  # a lock of the kernel, whose process lives, and has its answer soon
                held.enter_context(locked(path))
                return
            if time.monotonic() >= ends:
                raise
        time.sleep(_POLL_S)


def _is_fresh(found: Queue) -> bool:
    return 0 <= time.time() - found.time < INTERVAL_S


def _ask(found: Queue, job_ids: Collection[str], user: int) -> None:
    """Ask SLURM if what is known is too old."""
    for job_id in job_ids:
        if found.get(job_id) is None:
            found.missing.setdefault(job_id, 0.0)
    _remember(found, job_ids, found.jobs, found.time)
    if _is_fresh(found):
        return
    now = time.time()
    due = [job_id for job_id, when in found.missing.items() if when <= now and job_id not in found.jobs]
    if due and found.time:  # not what was just submitted: the accounting may not know it yet
        for job_id in due:
            found.missing[job_id] = now + _ASK_AGAIN_S
        try:
            _remember(found, due, accounted(due, user), now)
        except SlurmUnavailableError as error:  # many clusters keep no accounts
            _logger.debug("nothing is known of jobs that have left the queue: %s", error)
    else:
        try:
            found.jobs = _merged(found.jobs, queue(user))
            # As long as squeue knows: there may be no accounting.
            _remember(found, {*found.missing, *job_ids}, found.jobs, now)
            found.error = ""
        except SlurmUnavailableError as error:
            found.error = str(error).splitlines()[0]
    found.time = now


def _merged(before: dict[str, JobState], now: dict[str, JobState]) -> dict[str, JobState]:
    """The new answer; but squeue forgets the elements of an array one by one, those that failed as well."""
    forgotten = {
        job_id: before[job_id]
        for job_id, job in now.items()
        if job.state == "COMPLETED" and job_id in before and before[job_id].is_over
    }
    return now | forgotten


def _remember(found: Queue, job_ids: Iterable[str], jobs: dict[str, JobState], now: float) -> None:
    """Keep how jobs have ended, until one is seen again: an administrator may have put it back."""
    for job_id in job_ids:
        if job_id in jobs and jobs[job_id].has_ended:
            found.ended[job_id] = jobs[job_id]
            found.seen_ended.setdefault(job_id, now)
            found.missing.pop(job_id, None)
        elif job_id in jobs:
            found.ended.pop(job_id, None)
            found.seen_ended.pop(job_id, None)


def _path(runs: Path, user: int) -> Path:
    return runs / f".slurm-{user}-for-{os.getuid()}.json"


def _newest(runs: Path, user: int) -> Queue:
    found = _read(runs, user)
    return max(found, _unwritten.get((runs, user), found), key=lambda each: each.time)


def _read(runs: Path, user: int) -> Queue:
    document = read_json(_path(runs, user))
    if document is None:
        return Queue()
    jobs, ended = (
        {job_id: JobState(*job) for job_id, job in document[name].items()} for name in ("jobs", "ended")
    )
    rest = (document[name] for name in ("missing", "seen_ended"))
    return Queue(document["time"], document["error"], jobs, ended, *rest)


def _write(runs: Path, user: int, found: Queue) -> None:
    document = {
        "time": found.time,
        "error": found.error,
        "jobs": {job_id: [job.state, job.reason] for job_id, job in found.jobs.items()},
        "ended": {job_id: [job.state, job.reason] for job_id, job in found.ended.items()},
        "missing": found.missing,
        "seen_ended": found.seen_ended,
    }
    write_text(_path(runs, user), json.dumps(document))
