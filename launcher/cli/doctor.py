"""`univip doctor`: what is missing before a run, and the command against each."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli import completing
from launcher.errors import FAILED

if TYPE_CHECKING:
    from jobs.config import Config
    from launcher.doctor import Row

_CHECK_CELLS = 20
_COLOURS = {"OK": "green", "WARN": "yellow", "MISS": "red"}


@click.command()
@click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE | GROUP=OPTION]...", shell_complete=completing.overrides
)
@click.option("--deep", is_flag=True, help="Submit jobs of a few seconds, too, and look at their nodes.")
@click.option("--json", "as_json", is_flag=True, help='Print {"check", "level", "found", "fix"} per check.')
@click.option("--write", is_flag=True, help="Write configs/site/local.yaml from what SLURM tells.")
def command(overrides: tuple[str, ...], deep: bool, as_json: bool, write: bool) -> None:
    """Look for what would stop a run: OK, WARN or MISS, what was found, and the command that fixes it.

    With the overrides of a submit it looks at that request. Exits 0 when nothing is missing, else 1.

    \b
    univip doctor
    univip doctor cluster=slurm data.root=/data/coco data.split=train2017 --deep
    """  # noqa: D301 - a backspace is how click is told to keep the lines
    from jobs.compose import compose

    config = compose(overrides, needs_data=False)
    if write:
        _write(config, overrides)
    is_missing = False
    for row in _rows(config, deep=deep):
        is_missing = is_missing or row.level == "MISS"
        if as_json:
            click.echo(json.dumps(asdict(row)))
            continue
        click.echo(
            f"{click.style(f'{row.level:<5}', _COLOURS[row.level])}{row.check:<{_CHECK_CELLS}}{row.found}"
        )
        if row.fix:
            click.echo(f"{'':<{5 + _CHECK_CELLS}}fix: {row.fix}")
    if is_missing:
        raise click.exceptions.Exit(FAILED)


def _rows(config: Config, *, deep: bool) -> Iterator[Row]:
    from jobs.config import ClusterKind
    from launcher import admission, doctor

    in_slurm = deep or config.cluster.kind is ClusterKind.slurm
    yield from doctor.machine()
    if in_slurm:
        yield from admission.slurm(config)
    elif shutil.which("sbatch"):  # of no concern to a run on this machine
        for row in admission.slurm(config):
            is_missing = row.level is doctor.Level.MISS
            yield replace(row, level=doctor.Level.WARN) if is_missing else row
    runs = Path(config.paths.runs)
    yield from doctor.runs_folder(runs, asks_kind=in_slurm and not deep)
    if deep:
        yield from admission.deep(config, lambda line: click.echo(line, err=True))
    yield from doctor.data(config)
    yield doctor.prometheus(runs)


def _write(config: Config, overrides: tuple[str, ...]) -> None:
    """Write the site file, or show how it differs and refuse."""
    from launcher.site import SITE_FILE, ask_site, site_yaml, write_site_file

    text = site_yaml(ask_site(), config.cluster)
    before = SITE_FILE.read_text(encoding="utf-8") if SITE_FILE.exists() else ""
    if before and before != text:
        difference = difflib.unified_diff(
            before.splitlines(), text.splitlines(), "there", "as SLURM tells", lineterm=""
        )
        click.echo("\n".join(difference), err=True)
    is_new = write_site_file(text, SITE_FILE, overrides)
    click.echo(f"{'wrote' if is_new else 'nothing to change in'} {SITE_FILE}", err=True)
