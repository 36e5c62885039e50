"""`univip logs`: what the processes of a run printed, file after file, and what they print next."""

from __future__ import annotations

import time
from pathlib import Path

import click

from launcher.cli import completing

_POLL_S = 0.5


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed next, until the run is over.")
@click.option("--rank", type=click.IntRange(0), help="Only what this rank printed.")
@click.option("--attempt", type=click.IntRange(1), help="Only what was printed in this attempt.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=200, show_default=True, help="Last lines of each file."
)
def command(run: str, follow: bool, rank: int | None, attempt: int | None, lines: int) -> None:
    """Print the output of all stages, attempts, rounds and ranks of a run, the newest last."""
    from launcher.runs import find_run, read_state

    run_dir = find_run(run)
    shown: dict[Path, int] = {}
    last: Path | None = None
    while True:
        is_over = read_state(run_dir).is_over()  # looked at first, so that the last words are read
        for path in _files(run_dir, rank, attempt):
            text, shown[path] = _read(path, shown.get(path), lines)
            if text and path != last:
                click.echo(click.style(f"==> {path.relative_to(run_dir.parent)} <==", bold=True))
                last = path
            click.echo(text, nl=False)
        if not follow or is_over:
            if last is None:
                by = "" if rank is None else f" by rank {rank}"
                within = "" if attempt is None else f" in attempt {attempt}"
                click.echo(f"nothing was printed{by}{within} yet", err=True)
            return
        time.sleep(_POLL_S)


def _files(run_dir: Path, rank: int | None, attempt: int | None) -> list[Path]:
    """Output files of a run and of the boxes made for it, in the order of their last change.

    Of an attempt only those of its ranks: what SLURM keeps of a job goes on through its requeues.
    """
    from jobs.requests import Request

    request = Request.load(run_dir)
    runs = request.directories(run_dir) if request and attempt is None else {run_dir}
    if rank is not None or attempt is not None:
        number = "*" if attempt is None else f"{attempt:04d}"
        patterns = [f"attempts/{number}/round-*/rank-{'*' if rank is None else rank}.log"]
    else:
        patterns = ["attempts/*/round-*/rank-*.log", "logs/*.log", "submitit/*_log.out", "submitit/*_log.err"]
    found = [path for run in runs for pattern in patterns for path in run.glob(pattern)]
    return sorted(found, key=lambda path: (path.stat().st_mtime, path))


def _read(path: Path, start: int | None, lines: int) -> tuple[str, int]:
    """New text of a file and where it ends; of a file not seen before, its last lines."""
    with path.open("rb") as file:
        file.seek(start or 0)
        data = file.read()
    end = (start or 0) + len(data)
    if start is None:
        data = b"".join(data.splitlines(keepends=True)[-lines:] if lines else [])
    return data.decode("utf-8", "replace"), end
