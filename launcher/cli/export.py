"""`univip export`: the backbone, for whatever comes after pre-training."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli import completing


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option(
    "--names",
    type=click.Choice(["torchvision", "timm", "detectron2"]),
    default="torchvision",
    show_default=True,
    help="Whose names the weights get.",
)
@click.option("--data-step", type=click.IntRange(min=0), help="Which checkpoint (default: the newest).")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Safetensors file (default: RUN-step-000000020.safetensors here, for data step 20).",
)
def command(run: str, names: str, data_step: int | None, output: Path | None) -> None:
    """Write the backbone of a run as safetensors, also while it trains.

    Inputs are RGB from 0 to 1, normalised with ImageNet's mean and deviation. Of an older checkpoint than the
    newest, only those that are kept can be had.
    """
    from launcher.checkpoints import find_checkpoint, other_than
    from launcher.runs import find_run
    from univip.checkpoint.export import Names, export_backbone
    from univip.errors import CheckpointError

    run_dir = find_run(run)
    checkpoint = find_checkpoint(run_dir, data_step)
    path = output or Path(f"{run_dir.name}-{checkpoint.name}.safetensors")
    try:
        export_backbone(checkpoint, path, Names(names))
    except CheckpointError as error:
        raise CheckpointError(error.what, where=error.where, fix=other_than(checkpoint)) from error
    click.echo(path)
