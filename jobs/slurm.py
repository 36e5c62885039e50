"""What a job of SLURM knows about itself, and asks SLURM: why it was signalled, and to be queued again.

An *execution* of a job is its id and how often it was requeued; two executions of one job never run at the
same time. Questions go to scontrol, which works without accounting; where nobody answers, the answer is that
nothing is known. Torch-free.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.outcomes import Cause

TIMEOUT_S = 60
# What a user has set for the commands that are asked here: SQUEUE_PARTITION hides jobs, SCANCEL_INTERACTIVE
# waits for a key. What shows more stays (hidden partitions, a federation), and so does SLURM_*: SLURM_CONF
# and SLURM_CLUSTERS say where the jobs are, to sbatch as well.
_DEFAULTS = re.compile(r"(SACCT|SCANCEL|SCONTROL|SINFO|SQUEUE)_(?!(ALL|FEDERATION)$)")
# SLURM may warn of the time limit up to a minute earlier than it was asked to; and clocks differ.
_WARNS_EARLY_S = 90.0
# Words of `scontrol` for a job that is on its nodes.
_ON_NODES = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"}
)
# How SLURM ended a job -> why, where no process could say so itself.
CAUSES = {
    "TIMEOUT": Cause.TIME_LIMIT,
    "DEADLINE": Cause.TIME_LIMIT,
    "NODE_FAIL": Cause.NODE_FAILURE,
    "BOOT_FAIL": Cause.NODE_FAILURE,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "PREEMPTED": Cause.PREEMPTION,
}
# The same of one execution, which `sacct` knows.
_CAUSES = CAUSES | {
    "REQUEUED": Cause.STOPPED,
    "CANCELLED": Cause.CANCELLED,
    "FAILED": Cause.KILLED,  # what crashes says so itself
}


@dataclass(frozen=True)
class Execution:
    """One execution of a job of SLURM.

    Attributes:
        job_id: `12`, or `12_3` for an element of an array; empty outside of SLURM.
        restart: How often the job was requeued before.
        node: Number of this node within the job; the first has 0.
        num_nodes: Nodes of the job.
        node_name: What SLURM calls this node; its host name may have a domain, which SLURM does not know.
    """

    job_id: str = ""
    restart: int = 0
    node: int = 0
    num_nodes: int = 1
    node_name: str = ""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Execution:
        """The one that this process belongs to."""
        if "SLURM_JOB_ID" not in environment:
            return cls()
        job_id = environment["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in environment:
            job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return cls(
            job_id,
            int(environment.get("SLURM_RESTART_COUNT", "0")),
            int(environment.get("SLURM_NODEID", "0")),
            int(environment.get("SLURM_NNODES", "1")),
            environment.get("SLURMD_NODENAME", ""),
        )


def is_on_nodes(job_id: str, restart: int) -> bool | None:
    """Whether an execution still is on its nodes; None if SLURM does not answer."""
    try:
        job = _show(job_id)
    except (OSError, subprocess.SubprocessError):
        return None
    if not job:  # so old that SLURM has forgotten it
        return False
    return job["JobState"] in _ON_NODES and int(job.get("Restarts", "0")) == restart


def why_signalled(mine: Execution, *, signal_delay_s: float) -> tuple[Cause, str]:
    """Why SLURM told this job to stop, as a cause and in words; STOPPED if it was not SLURM.

    Args:
        mine: This execution.
        signal_delay_s: How long before its time limit the job asked to be warned.
    """
    try:
        job = _show(mine.job_id) if mine.job_id else {}
    except (OSError, subprocess.SubprocessError):
        job = {}
    if not job:
        return Cause.STOPPED, "asked to stop"
    if job.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"):
        return Cause.PREEMPTION, "preempted by another job"
    if int(job.get("Restarts", "0")) > mine.restart:
        return Cause.STOPPED, "put back into the queue by somebody"
    ends_in_s = _seconds(job.get("EndTime")) - time.time()
    limit_at_s = _seconds(job.get("StartTime")) + duration_s(job.get("TimeLimit", ""))
    if job["JobState"] == "RUNNING":
        if ends_in_s < signal_delay_s + _WARNS_EARLY_S:
            return Cause.TIME_LIMIT, "its time is almost up"
        return Cause.STOPPED, "asked to stop"
    if limit_at_s - time.time() < _WARNS_EARLY_S:
        return Cause.TIME_LIMIT, "its time is up"
    return Cause.CANCELLED, "cancelled in SLURM"


def why_ended(job_id: str, restart: int, node: str) -> tuple[Cause, str]:
    """Why an execution ended that could not say so: from the accounting, else from the state of its node."""
    why = Cause.UNKNOWN, f"job {job_id} ended without a word"
    try:
        listed = answer(
            [
                *[
                    "sacct",
                    "--duplicates",
                    "--allocations",
                    "--noheader",
                    "--parsable2",
                    "--format=Start,State",
                    "--jobs",
                ],
                job_id,
            ]
        )
        # A job that lost a node without ending has a row for each of its sizes.
        rows = sorted(line.split("|") for line in listed.splitlines() if "RESIZING" not in line)
        state = rows[restart][1].split()[0]
        if state in _CAUSES:
            why = _CAUSES[state], f"SLURM ended job {job_id}: {state}"
        if why[0] not in (Cause.UNKNOWN, Cause.STOPPED):  # put back into the queue, but for what reason?
            return why
    except (OSError, subprocess.SubprocessError, IndexError):
        pass  # no accounting
    try:
        state = answer(["sinfo", "--noheader", "--format=%t", f"--nodes={node}", "--all"]).strip()
    except (OSError, subprocess.SubprocessError):
        state = ""
    if state.startswith(("down", "drain", "fail")) or state.endswith("*"):
        return Cause.NODE_FAILURE, f"node {node} is {state}"
    return why


def num_nodes(mine: Execution) -> int:
    """Nodes that the job has now, without those it has lost; as at its start if SLURM does not answer."""
    try:
        return int(_show(mine.job_id)["NumNodes"].partition("-")[0])
    except (OSError, subprocess.SubprocessError, KeyError, ValueError):
        return mine.num_nodes


def has_node(mine: Execution, host: str) -> bool:
    """Whether the job still has a node that it had at its start; it has if SLURM does not answer."""
    from submitit.slurm.slurm import _parse_node_list

    try:
        return host in _parse_node_list(_show(mine.job_id)["NodeList"])
    except (OSError, subprocess.SubprocessError, KeyError):
        return True


def host_of(node: int) -> str:
    """Name of a node of this job, as SLURM knows it; outside of SLURM that of this machine."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        return socket.gethostname()
    from submitit.slurm.slurm import _parse_node_list

    return str(_parse_node_list(nodes)[node])


def requeue(mine: Execution, *, without: Sequence[str] = ()) -> str:
    """Put this job back into the queue, whose processes SLURM then ends.

    Args:
        mine: This execution.
        without: Nodes that it shall not be given again, beside those that it had asked to be left out. Those
            that SLURM does not have any more are passed over: it would refuse all of them.

    Returns:
        What SLURM said against it; empty if it did as asked.
    """
    # What SLURM starts to end meanwhile must not end scontrol, which takes over what is blocked here.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        answer(["scontrol", "requeue", mine.job_id])
        if left_out := known_nodes(without):  # refused while a job runs
            asked = _show(mine.job_id).get("ExcNodeList", "(null)")
            nodes = ",".join(left_out) if asked == "(null)" else ",".join([asked, *left_out])
            answer(["scontrol", "update", f"JobId={mine.job_id}", f"ExcNodeList={nodes}"])
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ""


def known_nodes(nodes: Sequence[str]) -> list[str]:
    """Those of some nodes that SLURM has, which refuses a job that is to do without another one.

    Args:
        nodes: Names; of none SLURM is not asked.

    Returns:
        In the same order; all of them if SLURM does not answer.
    """
    try:
        listed = answer(["sinfo", "--all", "--noheader", "--Node", "--format=%N"]).split() if nodes else []
    except (OSError, subprocess.SubprocessError):
        return list(nodes)
    return [node for node in nodes if node in listed]


def _show(job_id: str) -> dict[str, str]:
    """What scontrol tells of a job; nothing if it does not know it."""
    try:
        shown = answer(["scontrol", "show", "job", "--oneliner", job_id])
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in str(error.stderr):
            return {}
        raise
    # What a user may write freely stands before the user (the name of the job) or behind all that is needed
    # here (comment, folder): the first of its name in between is SLURM's own word.
    found: dict[str, str] = {}
    for word in (shown.partition(" UserId=")[2] or shown).split():
        name, equals, value = word.partition("=")
        if equals:
            found.setdefault(name, value)
    return found


def _seconds(text: str | None) -> float:
    """A time of SLURM as Unix time; 0 if it is unknown."""
    return float(text) if text and text.isdigit() else 0.0


def duration_s(text: str) -> float:
    """A duration of SLURM, `[days-]hours:minutes:seconds`; infinite if it is none."""
    days, _, rest = text.rpartition("-")
    try:
        hours, minutes, seconds = map(int, rest.split(":"))
        return 86400.0 * int(days or 0) + 3600.0 * hours + 60.0 * minutes + seconds
    except ValueError:
        return float("inf")


def answer(command: Sequence[str]) -> str:
    """What a command of SLURM prints, with times as Unix times, whatever the user has set for it.

    Raises:
        OSError: If it is missing.
        subprocess.CalledProcessError: If it fails.
        subprocess.TimeoutExpired: If it does not answer within `TIMEOUT_S`.
    """
    environment = {name: value for name, value in os.environ.items() if not _DEFAULTS.match(name)}
    done = subprocess.run(
        command,
        capture_output=True,
        check=True,
        encoding="utf-8",
        errors="replace",  # names of folders are bytes
        timeout=TIMEOUT_S,
        env=environment | {"SLURM_TIME_FORMAT": "%s"},
    )
    return done.stdout
