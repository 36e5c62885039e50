"""The SLURM commands this package runs by itself; submitting is submitit's part (`launcher/sbatch.py`)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.slurm import TIMEOUT_S, answer
from launcher.errors import SlurmUnavailableError

# States of jobs that do not come back by themselves.
_ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()  # noqa: SIM905
)
NEVER = "DependencyNeverSatisfied"
# What a user may have set; every other SLURM_* variable tells a process of the job that it belongs to.
_SETTINGS = frozenset({"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"})
# SBATCH_* variables that are not named like their option.
_VARIABLES = {
    "array": "ARRAY_INX",
    "cpu-freq": "CPU_FREQ_REQ",
    "mem": "MEM_PER_NODE",
    "switches": "REQ_SWITCH",
    "time": "TIMELIMIT",
}
# Options that ask for the same thing: one that a script sets must not meet another one from a variable.
_SAME = (
    {"requeue", "no-requeue"},
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres"},
)


@dataclass(frozen=True)
class JobState:
    """What SLURM says of one job; of an array, of the element that has the furthest to go.

    Attributes:
        state: SLURM's own word, such as PENDING.
        reason: Why it waits or why it ended, such as Resources; `None` where SLURM has none.
    """

    state: str
    reason: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it ran for the last time."""
        return self.state in _ENDED

    @property
    def is_over(self) -> bool:
        """Whether it will not run again: ended, or waiting for what cannot come any more."""
        return self.has_ended or (self.state == "PENDING" and self.reason == NEVER)


def queue(user: int | None = None) -> dict[str, JobState]:
    """Every job of a user that SLURM knows of, also those that ended in the last minutes, by job id.

    Args:
        user: Id of the user; left out, that of this process.

    Raises:
        SlurmUnavailableError: If squeue is missing or does not answer.
    """
    whose = f"--user={os.getuid() if user is None else user}"
    # Without `--all` it passes over jobs in hidden partitions, also over the user's own.
    return _by_job(_run(["squeue", whose, "--all", "--noheader", "--states=all", "--format=%F|%T|%r"]))


def accounted(job_ids: Sequence[str], user: int) -> dict[str, JobState]:
    """What the accounting knows of jobs of a user, by job id; those that it does not know are left out.

    Raises:
        SlurmUnavailableError: If sacct is missing or does not answer; many clusters keep no accounts.
    """
    what = [
        f"--user={user}",
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=JobID,State",
        f"--jobs={','.join(job_ids)}",
    ]
    rows = _run(["sacct", *what]).splitlines()
    # A job that lost a node without ending has a row for each size that it had before.
    return _by_job("\n".join(row for row in rows if "RESIZING" not in row))


def living_jobs(job_ids: Sequence[str]) -> set[str]:
    """Those of `job_ids` that wait or run; an array counts as one job.

    Raises:
        SlurmUnavailableError: If squeue is missing or does not answer.
    """
    # All of the user's jobs: squeue fails as a whole if one of the ids it is asked for is too old.
    known = queue()
    return {job_id for job_id in job_ids if job_id in known and not known[job_id].is_over}


def cancel_jobs(job_ids: Sequence[str], *, now: bool) -> None:
    """Cancel jobs: those that wait at once, those that run once they have saved their state.

    Those that are suspended end at once as well, as after a kill: SLURM hands them no signal.

    Args:
        job_ids: What to cancel.
        now: Kill what runs.

    Raises:
        SlurmUnavailableError: If scancel is missing or does not answer.
    """
    if now:
        _run(["scancel", "--quiet", "--full", "--signal=KILL", *job_ids])
        _run(["scancel", "--quiet", *job_ids])
        return
    for state in ("PENDING", "SUSPENDED"):
        _run(["scancel", "--quiet", f"--state={state}", *job_ids])
    # Not SIGTERM, after which SLURM kills within `KillWait`: a large state may take longer to write.
    _run(["scancel", "--quiet", "--state=RUNNING", "--signal=USR2", *job_ids])


def array_limit() -> int:
    """Elements that an array may have at this site; 1000 at most, with which `status` stays quick.

    One where arrays are switched off (`MaxArraySize=0`): submitit makes no array of a single job.

    Raises:
        SlurmUnavailableError: If scontrol is missing or does not answer.
    """
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]), re.MULTILINE)
    return min(max(1, int(found[1])), 1000) if found else 1000


def withdraw_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs that should not have been submitted; one that runs already is not to queue itself again.

    Raises:
        SlurmUnavailableError: If scancel is missing or does not answer.
    """
    if job_ids:
        _run(["scancel", "--quiet", *job_ids])


@contextmanager
def submitting(script: str) -> Iterator[None]:
    """The environment in which a script means what it says.

    sbatch takes SBATCH_* variables before the lines of a script: those of options that the script sets are
    left out. The others are what the user or the site wants where nothing else is said, and stay.

    And it is the environment of a login node, also in a session that is itself a job. sbatch hands its
    environment on, and srun in the new job would take what it says of the memory, CPUs and nodes of the old
    one for its own. (`submitit.helpers.clean_env` forgets what the user has set, too.)
    """
    said = set(re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE))
    said = said.union(*(same for same in _SAME if same & said))
    foreign = {f"SBATCH_{_VARIABLES.get(option, option.upper().replace('-', '_'))}" for option in said}
    foreign &= os.environ.keys()
    if "SLURM_JOB_ID" in os.environ:
        of_job = {name for name in os.environ if name.startswith(("SLURM_", "SLURMD_", "SRUN_"))}
        foreign |= of_job - _SETTINGS
    before = {name: os.environ.pop(name) for name in foreign}
    try:
        yield
    finally:
        os.environ.update(before)


def ask(*command: str) -> str:
    """What a command of SLURM prints that only looks.

    Raises:
        SlurmUnavailableError: If it is missing, does not answer or refuses.
    """
    return _run(list(command))


def _by_job(listed: str) -> dict[str, JobState]:
    """One state per job, from lines `id|state|reason` of jobs and of elements of arrays."""
    found: dict[str, JobState] = {}
    for line in listed.splitlines():
        job_id, state, reason = [*line.split("|"), "", ""][:3]
        if not state.strip():  # with SLURM_CLUSTERS set: `CLUSTER: name`, and blank lines
            continue
        job_id = job_id.partition("_")[0]
        new = JobState(state.split()[0], reason)  # `CANCELLED by 0`, says sacct
        if job_id not in found or _to_go(new) > _to_go(found[job_id]):
            found[job_id] = new
    return found


def _to_go(job: JobState) -> int:
    """Order of states within an array: what runs, what waits, what failed, what is done."""
    if job.state == "COMPLETED":
        return 0
    if job.is_over:
        return 1
    return 2 if job.state == "PENDING" else 3


def _run(command: list[str]) -> str:
    try:
        return answer(command)
    except FileNotFoundError as error:
        raise SlurmUnavailableError(
            f"`{command[0]}` must be on the PATH, but is not.",
            where=f"PATH={os.environ.get('PATH', '')}",
            fix="use a login node of the cluster, or cluster=local",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailableError(
            f"`{command[0]}` must answer, but has not for {TIMEOUT_S} s.",
            where=shlex.join(command),
            fix="try again later",
        ) from error
    except subprocess.CalledProcessError as error:
        # `scancel --quiet` fails without a word where a job has ended meanwhile.
        if "--quiet" in command and not error.stderr:
            return str(error.stdout)
        said = "; ".join(line.strip() for line in error.stderr.splitlines() if line.strip())
        raise SlurmUnavailableError(
            f"`{command[0]}` must succeed, but said: {said or f'nothing, exit status {error.returncode}'}",
            where=shlex.join(command),
            fix="sinfo  # does SLURM answer?",
        ) from error
