"""SLURM's jobs of the runs that a server shows, for `monitoring/exporter.py`, which knows no SLURM.

A scrape must not wait for squeue, which takes a minute on a bad day: it gets what was known last, and a
thread asks for more. `launcher/queue.py` sees to it that SLURM is asked once in 30 s, whoever else asks.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path

from launcher.queue import INTERVAL_S, look
from launcher.runs import JOBS_FILE, SubmittedJobs
from univip.errors import UnivipError

Row = tuple[str, str, str]  # run, state and reason of one job; an array is one job

_logger = logging.getLogger(__name__)


class JobRows:
    """Call it for the rows of the jobs that wait or run; none while SLURM does not answer."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._rows: list[Row] = []
        self._asked = -math.inf
        self._lock = threading.Lock()

    def __call__(self) -> list[Row]:
        """What was known last; returns at once."""
        with self._lock:
            if time.monotonic() - self._asked >= INTERVAL_S:
                self._asked = math.inf  # nobody else asks meanwhile
                threading.Thread(target=self._renew, name="jobs", daemon=True).start()
            return self._rows

    def _renew(self) -> None:
        rows: list[Row] = []
        try:
            rows = _ask(self._runs)
        except (OSError, UnivipError) as error:
            _logger.warning("the jobs of the runs are not known: %s", error)
        with self._lock:
            self._rows, self._asked = rows, time.monotonic()


def _ask(runs: Path) -> list[Row]:
    """Rows of the jobs, in order of runs; SLURM is not asked if no run was given to it."""
    owners = {path.parent: path.parent.stat().st_uid for path in sorted(runs.glob(f"*/{JOBS_FILE}"))}
    # Of jobs that have left the queue there is nothing to show.
    queues = {user: look(runs, (), user=user) for user in set(owners.values())}
    return [
        (run_dir.name, job.state, job.reason)
        for run_dir, user in owners.items()
        if not queues[user].error
        for job_id in _job_ids(run_dir)
        if (job := queues[user].jobs.get(job_id)) and (not job.is_over or job.state == "PENDING")
    ]


def _job_ids(run_dir: Path) -> list[str]:
    try:
        submitted = SubmittedJobs.load(run_dir)
    except (ValueError, KeyError, TypeError) as error:  # one damaged run must not hide the others
        _logger.debug("the jobs of run %s are not known: %s", run_dir.name, error)
        return []
    return submitted.of(run_dir.name) if submitted else []
