"""Nodes that are not fit to train: told to the ledger, and left out when the run is queued again.

A node is unfit for a day if it failed its pre-flight, or if it was lost in two attempts: one may have been an
accident. After that it has been repaired, or fails again. Written by the agent that decides, while no rank
runs that could write to the ledger at the same time. Torch-free: `univip supervise` and `univip show`
read the same records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.attempts import Attempt, read_attempts
from jobs.outcomes import Cause, ExitCode, Outcome
from univip.observe import Observer
from univip.resilience.ledger import Ledger

KIND = "unfit_node"  # of a record of the ledger
_PREFLIGHT, _LOST = "preflight", "lost"
_REMEMBERED_S = 86_400.0
_LOSSES = 2  # attempts


def failed_preflight(run_dir: Path, attempt: Attempt, host: str, what: str, observer: Observer) -> None:
    """Write down that a node takes no part, and why."""
    observer.record("preflight", host=host, what=what)  # first: its disk may be what is wrong
    _append(run_dir, attempt, _PREFLIGHT, host, what)


def lost(run_dir: Path, attempt: Attempt, host: str) -> None:
    """Write down that a node was lost while it trained."""
    _append(run_dir, attempt, _LOST, host, "lost while it trained")


def outcome(run_dir: Path, attempt: Attempt, message: str) -> Outcome:
    """How an attempt ends that has too few nodes: SLURM may give others.

    Not if it gave a node again that had failed before, or if there is no SLURM: then `univip supervise`, or a
    person, starts the run elsewhere.
    """
    failures = Counter(
        record["host"]
        for record in records(run_dir)
        if record["why"] == _PREFLIGHT and record["slurm_job_id"] == attempt.slurm_job_id
    )
    is_futile = bool(failures) and (not attempt.slurm_job_id or max(failures.values()) > 1)
    return Outcome(ExitCode.CRASH if is_futile else ExitCode.REQUEUE, Cause.NODE_FAILURE, message)


def unfit_hosts(run_dir: Path, *, now: float, just_lost: Attempt | None = None) -> list[str]:
    """Nodes to be left out when the run is queued again, by SLURM's names.

    Args:
        run_dir: Of the run.
        now: Unix time, s.
        just_lost: An attempt that ended with the node it ran on, and is not written down yet.
    """
    found = [record for record in records(run_dir) if record["time"] > now - _REMEMBERED_S]
    failed = {record["host"] for record in found if record["why"] == _PREFLIGHT}
    losses = {(record["host"], record["attempt"]) for record in found if record["why"] == _LOST}
    losses |= {  # of the node that had the agent which decides: nobody was left to write it down
        (attempt.node, attempt.number)
        for attempt in read_attempts(run_dir)
        if attempt.slurm_job_id and attempt.exit_code is None and attempt.cause == Cause.NODE_FAILURE
        if (attempt.ended or 0.0) > now - _REMEMBERED_S
    }
    if just_lost:
        losses.add((just_lost.node, just_lost.number))
    counts = Counter(host for host, _ in losses)
    return sorted(failed | {host for host, count in counts.items() if count >= _LOSSES})


def records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What the ledger knows of unfit nodes, oldest first: time, attempt, slurm_job_id, host, why, what."""
    return (record for record in Ledger(run_dir / "ledger.jsonl").read() if record["kind"] == KIND)


def _append(run_dir: Path, attempt: Attempt, why: str, host: str, what: str) -> None:
    Ledger(run_dir / "ledger.jsonl").append(
        KIND,
        attempt=attempt.number,
        slurm_job_id=attempt.slurm_job_id,
        host=host,
        why=why,
        what=what,
    )
