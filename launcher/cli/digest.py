"""`univip digest`: equal digests mean equal training states, whichever path led there."""

from __future__ import annotations

import click


@click.command()
@click.argument("run")
def command(run: str) -> None:
    """Print one SHA-256 over names, shapes and bytes of the last checkpoint's tensors."""
    from launcher.runs import find_run
    from univip.checkpoint import layout
    from univip.errors import CheckpointError

    checkpoints = find_run(run) / "checkpoints"
    data_steps = layout.data_steps(checkpoints)
    if not data_steps:
        raise CheckpointError(
            "the run has no checkpoint yet.", where=str(checkpoints), fix=f"univip show {run}"
        )
    click.echo(layout.digest(checkpoints / layout.name_of(data_steps[-1])))
