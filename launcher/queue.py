"""SLURM's queue as the runs of one folder see it: asked at most once in 30 s, by whoever needs it first.

Every `status`, `logs -f` and `--wait` reads one small file beside the runs; the one that finds it too old
renews it. So a hundred runs watched from ten shells cost SLURM one call in 30 s. squeue is asked first: it
knows what waits and runs, and for some minutes what ended. For jobs that have left it, the next call is one
of sacct, where there is accounting; how a job ended is remembered, so it is asked for once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jobs.locks import locked
from jobs.outcomes import read_json
from launcher.errors import SlurmUnavailableError
from launcher.slurm import JobState, accounted, queue
from univip.atomic import write_text

INTERVAL_S = 30.0
_ASK_AGAIN_S = 600.0  # of a job that sacct did not know; it may be late
_FILE = ".slurm.json"
_LOCK = ".slurm.lock"


@dataclass
class Queue:
    """What SLURM said last.

    Attributes:
        time: When it was asked (Unix, s).
        error: Why it did not answer then; what it said before still stands.
        jobs: Every job in squeue, by id.
        ended: How jobs that runs of this folder asked for have ended, by id.
        missing: Jobs asked for that squeue does not know (any more), and when sacct is to be asked for them.
    """

    time: float = 0.0
    error: str = ""
    jobs: dict[str, JobState] = field(default_factory=dict)
    ended: dict[str, JobState] = field(default_factory=dict)
    missing: dict[str, float] = field(default_factory=dict)

    def get(self, job_id: str) -> JobState | None:
        """What SLURM says of a job; None if it knows nothing of it, or did not answer yet."""
        return self.jobs.get(job_id) or self.ended.get(job_id)


def look(runs: Path, job_ids: Collection[str]) -> Queue:
    """The queue, at most 30 s old, or older if SLURM does not answer.

    Args:
        runs: Folder of the runs; the answer is kept there.
        job_ids: What the caller wants to know about.
    """
    found = _read(runs)
    wanted = {job_id for job_id in job_ids if found.get(job_id) is None} - found.missing.keys()
    if 0 <= time.time() - found.time < INTERVAL_S and not wanted:
        return found
    try:
        with locked(runs / _LOCK):
            found = _read(runs)  # while this waited, another process may have asked
            for job_id in wanted - found.missing.keys():
                found.missing[job_id] = 0.0
            if not 0 <= time.time() - found.time < INTERVAL_S:
                _renew(found, job_ids)
            _write(runs, found)
    except OSError:  # somebody else's runs, or a full disk: then nothing is remembered
        if not found.time:
            _renew(found, job_ids)
    return found


def ask_anew(runs: Path) -> None:
    """Let the next look ask squeue: this process has just changed the queue."""
    with locked(runs / _LOCK):
        found = _read(runs)
        found.time = 0.0
        _write(runs, found)


def _renew(found: Queue, job_ids: Collection[str]) -> None:
    """One call of SLURM: sacct for what has left the queue, if it was not asked just before; else squeue."""
    now = time.time()
    due = [job_id for job_id, when in found.missing.items() if when <= now and job_id not in found.jobs]
    try:
        if due and found.time:
            for job_id in due:
                found.missing[job_id] = now + _ASK_AGAIN_S
            _remember(found, due, accounted(due))
        else:
            found.jobs = _merged(found.jobs, queue())
            # As long as squeue knows: there may be no accounting.
            _remember(found, {*found.missing, *job_ids}, found.jobs)
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


def _remember(found: Queue, job_ids: Iterable[str], jobs: dict[str, JobState]) -> None:
    """Keep how jobs have ended, until one is seen again: an administrator may have put it back."""
    for job_id in job_ids:
        if job_id in jobs and jobs[job_id].has_ended:
            found.ended[job_id] = jobs[job_id]
            found.missing.pop(job_id, None)
        elif job_id in jobs:
            found.ended.pop(job_id, None)


def _read(runs: Path) -> Queue:
    document = read_json(runs / _FILE)
    if document is None:
        return Queue()
    jobs, ended = (
        {job_id: JobState(*job) for job_id, job in document[name].items()} for name in ("jobs", "ended")
    )
    return Queue(document["time"], document["error"], jobs, ended, document["missing"])


def _write(runs: Path, found: Queue) -> None:
    document = {
        "time": found.time,
        "error": found.error,
        "jobs": {job_id: [job.state, job.reason] for job_id, job in found.jobs.items()},
        "ended": {job_id: [job.state, job.reason] for job_id, job in found.ended.items()},
        "missing": found.missing,
    }
    write_text(runs / _FILE, json.dumps(document))
