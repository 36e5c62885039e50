"""`univip clean`: lists what can go of the runs and how much room it takes, and removes it when told to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli import completing

if TYPE_CHECKING:
    from launcher.clean import Waste

_DAY_S = 86400.0


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=completing.runs)
@click.option("--older-than", metavar="DAYS", type=click.FloatRange(min=0), help="Only unused for so long.")
@click.option("--whole", is_flag=True, help="The named runs as a whole, with their checkpoints.")
@click.option("--yes", is_flag=True, help="Remove it; without this it is only listed.")
@click.option("--dry-run", is_flag=True, help="Only list it, whatever else is said.")
def command(runs: tuple[str, ...], older_than: float | None, whole: bool, yes: bool, dry_run: bool) -> None:
    """Make room: abandoned checkpoints, torn writes, files of jobs that have ended; with --whole, runs.

    Without RUN it looks at all runs. What somebody works on, and what a replay needs, stays. Only --yes
    removes anything.
    """
    from launcher import clean
    from launcher.runs import all_runs, find_run, runs_root
    from univip.errors import UnivipError

    if whole and not runs:
        raise click.UsageError("--whole goes with the names of runs: univip clean RUN --whole.")
    chosen = [find_run(run) for run in runs] or all_runs(runs_root())
    if older_than is not None:
        newest = time.time() - older_than * _DAY_S
        chosen = [run_dir for run_dir in chosen if clean.last_used(run_dir) <= newest]
    found = [waste for run_dir in dict.fromkeys(chosen) for waste in _of(run_dir, whole=whole)]
    if not runs and (remains := clean.remains(runs_root())):
        found.append(remains)
    freed, refused = 0, dict[Path, UnivipError]()
    for waste in found:
        size = waste.size_bytes()
        click.echo(f"{size / 1e6:>12,.1f} MB  {waste.run_dir.name}: {len(waste.paths)} {waste.what}")
        if yes and not dry_run and waste.run_dir not in refused:
            try:
                clean.remove(waste, lambda run_dir=waste.run_dir: _of(run_dir, whole=whole))  # type: ignore[misc]
            except UnivipError as error:  # the other runs can be cleaned all the same
                refused[waste.run_dir] = error
        freed += size * (waste.run_dir not in refused)
    if not found:
        click.echo("nothing to remove", err=True)
    elif yes and not dry_run:
        click.echo(f"freed      {freed / 1e6:,.1f} MB", err=True)
        errors = list(refused.values())
        for each in errors[:-1]:
            click.echo(str(each), err=True)
        if errors:
            raise errors[-1]
    else:
        click.echo(f"to free    {freed / 1e6:,.1f} MB; the same with --yes removes it", err=True)


def _of(run_dir: Path, *, whole: bool) -> list[Waste]:
    from launcher import clean

    return [clean.whole(run_dir)] if whole else clean.leftovers(run_dir)
