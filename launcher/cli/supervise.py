"""`univip supervise`: resubmits the runs that SLURM gave up on."""

from __future__ import annotations

import time

import click

_EVERY_S = 60.0


@click.command()
@click.option("--once", is_flag=True, help="Look at every run once, as from cron.")
def command(once: bool) -> None:
    """Submit runs again that the cluster ended: lost nodes, too little memory, agents killed too often.

    Leaves alone what a person must look at (exit codes 76 and 77) and what was cancelled. Until Ctrl-C.
    """
    from launcher.errors import FAILED
    from launcher.runs import all_runs, runs_root
    from launcher.supervise import round_of

    said: set[str] = set()
    while True:
        lines, is_well = round_of(all_runs(runs_root()))
        for line in lines:
            if line not in said:
                click.echo(line)
        if once:
            raise click.exceptions.Exit(0 if is_well else FAILED)
        said = set(lines)
        time.sleep(_EVERY_S)
