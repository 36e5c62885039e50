"""The SLURM commands this package runs by itself; submitting is submitit's part (`launcher/sbatch.py`)."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from launcher.errors import SlurmUnavailableError

_TIMEOUT_S = 60


def living_jobs(job_ids: Sequence[str]) -> set[str]:
    """Those of `job_ids` that SLURM still knows as waiting or running; an array counts as one job.

    Raises:
        SlurmUnavailableError: If squeue is missing or does not answer.
    """
    # All of the user's jobs: squeue fails as a whole if one of the ids it is asked for is too old.
    listed = _run(["squeue", "--me", "--noheader", "--format=%F"])
    return set(job_ids) & set(listed.split())


def cancel_jobs(job_ids: Sequence[str], *, now: bool) -> None:
    """Cancel jobs: SIGTERM, and SIGKILL after SLURM's KillWait; or SIGKILL at once.

    Raises:
        SlurmUnavailableError: If scancel is missing or does not answer.
    """
    if now:
        _run(["scancel", "--quiet", "--full", "--signal=KILL", *job_ids])
    _run(["scancel", "--quiet", *job_ids])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
    except FileNotFoundError as error:
        raise SlurmUnavailableError(
            f"`{command[0]}` must be on the PATH, but is not.", fix="use a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailableError(
            f"`{command[0]}` must answer, but has not for {_TIMEOUT_S} s.", fix="try again later"
        ) from error
    except subprocess.CalledProcessError as error:
        raise SlurmUnavailableError(
            f"`{command[0]}` must succeed, but said: {error.stderr.strip()}",
            fix="sinfo  # does SLURM answer?",
        ) from error
    return done.stdout
