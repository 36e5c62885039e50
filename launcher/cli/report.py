"""`univip report`: one run in one file."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file (default: results/report.html of the run).",
)
def command(run: str, output: Path | None) -> None:
    """Write curves, faults and their cost, results and configuration of a run as one HTML file.

    It needs no server and no network. Each attempt of training or evaluation writes it at its end, too.
    """
    from jobs.config import load
    from jobs.identity import changed_keys
    from launcher.render import say
    from launcher.runs import find_run, refuse_foreign
    from launcher.summary import summarise
    from monitoring.web.history import History
    from monitoring.web.report import FILE, report
    from univip.atomic import write_text
    from univip.errors import ConfigError

    run_dir = find_run(run)
    if output is None:
        fix = f"univip report {shlex.quote(str(run_dir))} -o {shlex.quote(f'{run_dir.name}.html')}"
        refuse_foreign(run_dir, "write a report into", fix=fix)
    history = History(run_dir)
    history.update()
    path = output or run_dir / FILE
    if output is None:
        path.parent.mkdir(exist_ok=True)
    try:
        changed = changed_keys(load(run_dir))
    except ConfigError as error:  # of another version; the report says all the rest
        say(str(error))
        changed = {}
    text = report(run_dir, history, changed, summarise(run_dir).to_json())
    write_text(path, text)
    click.echo(path)
