"""Takes a run over from a machine that cannot be asked any more, on the word of the user.

What died on another machine looks alive for ever: its processes cannot be seen from here. Should they live
after all, on a shared file system, the newer attempt fences them: they write no further checkpoint.
"""

from __future__ import annotations

import shlex
import socket
import time
from pathlib import Path

from jobs import slurm
from jobs.attempts import Attempt, living_attempts
from jobs.config import data_dir
from jobs.outcomes import Cause, read_json, write_json
from jobs.requests import SUPERVISOR_FILE
from launcher.errors import RefusedError
from launcher.runs import Owner, refuse_foreign


def take_over(run_dir: Path) -> list[str]:
    """Write down that whoever works on a run or its boxes from another machine has ended.

    Returns:
        The names of those machines.

    Raises:
        RefusedError: If it runs, as far as can be seen, or belongs to another user.
    """
    here, hosts = socket.gethostname(), set[str]()
    for folder in dict.fromkeys((run_dir, data_dir(run_dir))):
        refuse_foreign(folder)
        owner, living = Owner.load(folder), living_attempts(folder)
        is_mine = owner and owner.is_alive() and owner.host == here
        if is_mine or any(each.host == here or _is_running(each) for each in living):
            raise RefusedError(
                f"run `{folder.name}` must not be running, but is, on this machine or as a job of SLURM.",
                where=str(folder),
                fix=f"univip cancel {shlex.quote(str(folder))}",
            )
        if owner and owner.is_alive():
            hosts.add(owner.host)
            write_json(
                folder / SUPERVISOR_FILE, (read_json(folder / SUPERVISOR_FILE) or {}) | {"outcome": "failed"}
            )
        for attempt in living:
            hosts.add(attempt.host)
            attempt.ended, attempt.cause = time.time(), Cause.UNKNOWN
            attempt.message = f"taken over from {attempt.host} by {here}"
            attempt.save(folder)
    return sorted(hosts)


def _is_running(attempt: Attempt) -> bool:
    """Whether SLURM says so."""
    job_id, restart = attempt.slurm_job_id, attempt.slurm_restart
    return bool(job_id) and slurm.is_on_nodes(job_id, restart) is True
