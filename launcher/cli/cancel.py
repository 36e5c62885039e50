"""`univip cancel`: ask whoever works on a run to save its state and stop."""

from __future__ import annotations

import os
import shlex
import signal
import socket
from pathlib import Path

import click

from jobs.requests import CANCELLED_FILE
from launcher.cli import completing
from launcher.errors import RefusedError
from launcher.runs import Owner, SubmittedJobs, all_runs, find_run, refuse_foreign, what_next
from launcher.states import State, read_state
from univip.errors import UnivipError


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option("--now", is_flag=True, help="Kill it; what it did since the last checkpoint is lost.")
def command(run: str, now: bool) -> None:
    """Stop a run: it writes a checkpoint first, and `univip resume` goes on from there."""
    from jobs.attempts import living_attempts

    run_dir = find_run(run)
    refuse_foreign(run_dir, "cancel", fix=f"ask its owner; stat -c %U {shlex.quote(str(run_dir))}")
    owner = Owner.load(run_dir)
    if owner and owner.is_alive():
        _signal(run_dir, owner.pid, owner.host, signal.SIGINT if now else signal.SIGTERM)
    elif read_state(run_dir).state is State.done:
        click.echo(f"run {run_dir.name} is done already", err=True)
        return
    elif jobs := SubmittedJobs.load(run_dir):
        _cancel_jobs(run_dir, jobs, now=now)
    elif living := living_attempts(run_dir):
        # Its supervisor died.
        for attempt in living:
            _signal(run_dir, attempt.pid, attempt.host, signal.SIGKILL if now else signal.SIGTERM)
    else:
        click.echo(f"run {run_dir.name} is not running", err=True)
        return
    done = f"killed run {run_dir.name}" if now else f"asked run {run_dir.name} to stop"
    click.echo(f"{done}\n{what_next(run_dir, 'resume RUN')}", err=True)


def _cancel_jobs(run_dir: Path, jobs: SubmittedJobs, *, now: bool) -> None:
    """Cancel those of a run's jobs that no other run waits for.

    Raises:
        SlurmUnavailableError: If SLURM does not do it; the run goes on then as if nobody had asked.
    """
    from launcher.queue import ask_anew
    from launcher.slurm import cancel_jobs

    shared = _wanted_by_others(run_dir, jobs)
    marks = []
    for run, ids in {run: set(jobs.of(run)) for run in jobs.runs.values()}.items():
        if ids - shared:
            marks.append(run_dir.parent / run / CANCELLED_FILE)
        else:
            click.echo(f"the boxes of {run} are made for other runs as well; that goes on", err=True)
    for mark in marks:  # first, so that a job that saves its state does not queue itself again
        mark.touch()
    try:
        cancel_jobs(sorted(set(jobs.ids.values()) - shared), now=now)
    except UnivipError:
        for mark in marks:
            mark.unlink(missing_ok=True)
        raise
    ask_anew(run_dir.parent)


def _wanted_by_others(run_dir: Path, jobs: SubmittedJobs) -> set[str]:
    """Those of a run's jobs that another living run waits for: boxes of the same photographs."""
    shared = set(jobs.ids.values()) - set(jobs.of(run_dir.name))
    wanted: set[str] = set()
    for other in all_runs(run_dir.parent) if shared else []:
        theirs = SubmittedJobs.load(other) if other != run_dir else None
        if theirs and theirs.of(other.name) and not (other / CANCELLED_FILE).exists():
            is_boxes = shared.issuperset(theirs.of(other.name))
            if not is_boxes and not read_state(other).is_over():
                wanted |= shared.intersection(theirs.ids.values())
    return wanted


def _signal(run_dir: Path, pid: int, host: str, number: signal.Signals) -> None:
    if host != socket.gethostname():
        run = shlex.quote(str(run_dir))
        raise RefusedError(
            f"run `{run_dir.name}` must be cancelled where it runs, which is {host}.",
            where=str(run_dir),
            fix=f"ssh {host} univip cancel {run}; or, if {host} is gone, univip resume {run} --take-over",
        )
    os.kill(pid, number)
