"""`univip proposals`: look at boxes, and at the samples made with them, before training on them."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import click

from launcher.cli import completing


@click.group()
def command() -> None:
    """Look at boxes and samples."""


@command.command()
@click.argument("run", shell_complete=completing.runs)
@click.argument("image")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG file (default: IMAGE.png here).")
@click.option("--sample", is_flag=True, help="Draw a sample instead: scenes, instances, augmented pixels.")
@click.option("--epoch", type=click.IntRange(min=0), help="Which sample of the image (default: 0).")
def show(run: str, image: str, output: Path | None, sample: bool, epoch: int | None) -> None:
    """Draw the boxes of an image: RUN has made them or uses them; IMAGE is an id or a row such as #0.

    With --sample, what RUN trains on: RUN is a training run, and the sample is the one of that epoch.
    """
    from launcher.runs import find_run

    if epoch is not None and not sample:
        raise click.UsageError("`--epoch` must come with `--sample`: boxes are the same in every epoch.")
    # By name: drawing loads OpenCV and Arrow, and a sample torch.
    if sample:
        write_sample = pkgutil.resolve_name("jobs.picture:write_sample")
        click.echo(write_sample(find_run(run), image, output, epoch=epoch or 0))
    else:
        write_picture = pkgutil.resolve_name("jobs.picture:write_picture")
        click.echo(write_picture(find_run(run), image, output))
