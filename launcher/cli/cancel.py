"""`univip cancel`: ask whoever works on a run to save its state and stop."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import click

from launcher.cli import completing
from launcher.errors import RefusedError
from launcher.runs import JOBS_FILE, Owner, find_run, what_next


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option("--now", is_flag=True, help="Kill it; what it did since the last checkpoint is lost.")
def command(run: str, now: bool) -> None:
    """Stop a run: it writes a checkpoint first, and `univip resume` goes on from there."""
    from jobs.attempts import living_attempts
    from jobs.outcomes import read_json
    from jobs.requests import CANCELLED_FILE, Request

    run_dir = find_run(run)
    owner = Owner.load(run_dir)
    if owner and owner.is_alive():
        _signal(run_dir, owner.pid, owner.host, signal.SIGINT if now else signal.SIGTERM)
    elif document := read_json(run_dir / JOBS_FILE):
        from launcher.slurm import cancel_jobs

        request = Request.load(run_dir)
        # So that a job that saves its state does not queue itself again.
        for directory in request.directories(run_dir) if request else [run_dir]:
            (directory / CANCELLED_FILE).touch()
        cancel_jobs([job["id"] for job in document["jobs"]], now=now)
    elif living := living_attempts(run_dir):
        # Its supervisor died.
        for attempt in living:
            _signal(run_dir, attempt.pid, attempt.host, signal.SIGKILL if now else signal.SIGTERM)
    else:
        click.echo(f"run {run_dir.name} is not running", err=True)
        return
    click.echo(f"asked run {run_dir.name} to stop\n{what_next(run_dir, 'resume RUN')}", err=True)


def _signal(run_dir: Path, pid: int, host: str, number: signal.Signals) -> None:
    if host != socket.gethostname():
        raise RefusedError(
            f"run `{run_dir.name}` must be cancelled where it runs, which is {host}.",
            where=str(run_dir),
            fix=f"ssh {host} univip cancel {run_dir}",
        )
    os.kill(pid, number)
