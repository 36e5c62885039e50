"""`univip proposals`: look at boxes before training on them."""

from __future__ import annotations

import pkgutil
from pathlib import Path

import click


@click.group()
def command() -> None:
    """Look at boxes."""


@command.command()
@click.argument("run")
@click.argument("image")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="PNG file (default: IMAGE.png here).")
def show(run: str, image: str, output: Path | None) -> None:
    """Draw the boxes of an image: RUN has made them or uses them; IMAGE is an id or a row such as #0."""
    from launcher.runs import find_run

    # By name: drawing loads OpenCV and Arrow.
    write_picture = pkgutil.resolve_name("jobs.picture:write_picture")
    click.echo(write_picture(find_run(run), image, output))
