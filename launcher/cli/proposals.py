"""`univip proposals`: look at boxes and at the samples made with them, and use boxes from elsewhere."""

from __future__ import annotations

import json
import pkgutil
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli import completing
from launcher.cli.proposals_look import show, stats

if TYPE_CHECKING:
    from jobs.config import Config


@click.group()
def command() -> None:
    """Look at boxes and samples; import, filter and export boxes."""


command.add_command(show)
command.add_command(stats)


@command.command("import")
@click.argument("words", nargs=-1, required=True, metavar="FILE... [KEY=VALUE | GROUP=OPTION]...")
@click.option("--json", "as_json", is_flag=True, help='Print {"run", "run_dir", "source", "boxes"}.')
def import_(words: tuple[str, ...], as_json: bool) -> None:
    """Make a run of boxes that somebody else has found, for the photographs of data.*.

    FILE is ORL's JSON, a pickle of boxes, or a list of detections in COCO's format; its content tells which.
    Several FILEs follow each other like the splits of data.split. The boxes are filtered as searched ones
    are. The same command again goes on where a killed one was.

    \b
    univip proposals import train2017_selective_search_proposal.json data=coco data.root=/data/coco
    univip proposals import detections.json data=coco data.root=/data/coco data.split=train2017
    """  # noqa: D301 - a backspace is how click is told to keep the lines
    from jobs.compose import compose
    from jobs.config import RunKind
    from jobs.identity import run_id
    from launcher import render
    from launcher.plan import make_plan
    from launcher.submission import make_run
    from univip.config import SEARCH
    from univip.errors import ConfigError, UnivipError

    first, *rest = words  # the name of a file may hold a `=`
    paths = [Path(first), *(Path(word) for word in rest if "=" not in word)]
    overrides = [word for word in rest if "=" in word]
    config = compose(overrides)
    header = make_plan("proposals", config).header  # first: photographs that are not there need no checksum
    examine = pkgutil.resolve_name("univip.proposals.foreign:examine")
    source_key = pkgutil.resolve_name("univip.proposals.foreign:source_key")
    total = sum(path.stat().st_size for path in paths)
    with render.progress("checksum", total, "bytes") as tell:
        sources = examine(paths, tell)
    key = source_key(sources)
    if config.proposals.source not in (SEARCH, key):
        raise ConfigError(
            f"`proposals.source` must be {key} for these files, but is {config.proposals.source}.",
            where="the command line",
            fix=f"proposals.source={key}",
        )
    config = replace(config, proposals=replace(config.proposals, source=key))
    header = replace(header, id=run_id(config, header.fingerprint, RunKind.proposals))
    render.say(f"run        {header.id}", f"images     {header.num_images:,}")
    is_new = not (Path(config.paths.runs) / header.id).exists()
    run_dir = make_run(config, header)
    try:
        with config.paths.as_open(), render.progress("reading", total, "bytes") as tell:
            report = pkgutil.resolve_name("jobs.imports:import_boxes")(run_dir, sources, tell)
    except UnivipError:
        if is_new:  # of a file that is refused there is nothing to go on with
            shutil.rmtree(run_dir)
        raise
    shown = [word for word in overrides if not word.startswith("proposals.source=")]
    _say_boxes(report)
    render.say(
        f"next       {shlex.join(['univip', 'submit', 'pipeline', *shown, f'proposals.source={key}'])}"
    )
    if as_json:
        found = {"run": run_dir.name, "run_dir": str(run_dir), "source": key, "boxes": report["boxes"]}
        click.echo(json.dumps(found))
    else:
        click.echo(run_dir.name)


@command.command("filter")
@click.argument("run", shell_complete=completing.runs)
@click.argument("overrides", nargs=-1, metavar="[proposals.KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help='Print {"run", "run_dir", "boxes"}.')
def filter_(run: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Filter the raw boxes of RUN under other limits into a run of its own; nothing is searched again.

    KEY is min_sizes, max_ratio or max_iou. Training with the same keys finds the new run.

    \b
    univip proposals filter @last "proposals.min_sizes=[48,96]" proposals.max_iou=0.6
    """  # noqa: D301 - a backspace is how click is told to keep the lines
    from jobs.config import RunKind, data_dir, load, load_header
    from jobs.identity import run_id
    from launcher import render
    from launcher.runs import find_run
    from launcher.submission import make_run
    from univip.errors import ConfigError

    source_dir = data_dir(find_run(run))
    header = load_header(source_dir)
    config = _with_limits(load(source_dir), overrides)
    config = replace(config, paths=replace(config.paths, runs=str(source_dir.parent)))
    header = replace(header, id=run_id(config, header.fingerprint, RunKind.proposals))
    if header.id == source_dir.name:
        raise ConfigError(
            f"the limits must differ from those of `{header.id}`, but do not.",
            where=str(source_dir),
            fix=f"univip proposals show '#0' {shlex.quote(str(source_dir))}",
        )
    run_dir = make_run(config, header)
    with config.paths.as_open(), render.progress("filtering", header.num_images, "images") as tell:
        report = pkgutil.resolve_name("jobs.imports:refilter")(run_dir, source_dir, tell)
    _say_boxes(report)
    if as_json:
        click.echo(json.dumps({"run": header.id, "run_dir": str(run_dir), "boxes": report["boxes"]}))
    else:
        click.echo(header.id)


@command.command()
@click.argument("run", shell_complete=completing.runs)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--min-size", type=int, metavar="PX", help="A filtered list instead of the raw boxes.")
def export(run: str, file: Path, min_size: int | None) -> None:
    """Write the raw boxes of RUN to FILE as ORL's JSON: one row for every image of the annotations, in order.

    An image without boxes is an empty row; the row of one box is that box itself, as ORL's writer has it.
    """
    from launcher import render
    from launcher.runs import find_run

    export_boxes = pkgutil.resolve_name("jobs.imports:export_boxes")
    with render.progress("writing", 0, "images") as tell:
        empty = export_boxes(find_run(run), file, min_size, tell)
    if empty:
        render.say(f"{empty:,} images have no boxes: their rows are empty")
    click.echo(file)


def _with_limits(config: Config, overrides: tuple[str, ...]) -> Config:
    """`config` with other limits of the filter, and nothing else of it."""
    from jobs.compose import compose
    from univip.errors import ConfigError

    known = ("min_sizes", "max_ratio", "max_iou")
    names = [word.partition("=")[0].removeprefix("proposals.") for word in overrides]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"what is filtered anew must be given by {', '.join(f'`proposals.{name}`' for name in known)}, "
            f"but {f'`{unknown[0]}` is' if unknown else 'nothing is'} given.",
            where="the command line",
            fix='univip proposals filter RUN "proposals.min_sizes=[48,96]"',
        )
    # Limits are all that is asked for; how training would use the boxes is not checked here.
    asked = compose(["data.root=unused", "method=byol", *overrides]).proposals
    limits: dict[str, Any] = {name: getattr(asked, name) for name in names}
    return replace(config, proposals=replace(config.proposals, **limits))


def _say_boxes(report: dict[str, Any]) -> None:
    """What became of the boxes, in words."""
    from launcher import render

    for name, number in report["boxes"].items():
        without = len(report["without_boxes"].get(name, ()))
        render.say(f"{name:<11}{number:,} boxes" + f", {without:,} images without" * (without > 0))
    if report.get("left_out"):
        render.say(f"left out   {report['left_out']:,} detections that cover no whole pixel")
