"""`univip digest`: equal digests mean equal training states, whichever path led there."""

from __future__ import annotations

import click

from launcher.cli import completing


@click.command()
@click.argument("run", shell_complete=completing.runs)
def command(run: str) -> None:
    """Print one SHA-256 over names, shapes and bytes of the last checkpoint's tensors."""
    from launcher.checkpoints import find_checkpoint
    from launcher.runs import find_run
    from univip.checkpoint import layout

    click.echo(layout.digest(find_checkpoint(find_run(run))))
