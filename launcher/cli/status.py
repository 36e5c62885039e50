"""`univip status`: one line per run, from its files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

_POLL_S = 2.0
_RECENT = 20


@click.command()
@click.option("--watch", is_flag=True, help="Draw the table anew every 2 s, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per run.")
@click.option("--all", "everything", is_flag=True, help=f"Every run, not only the newest {_RECENT}.")
def command(watch: bool, as_json: bool, everything: bool) -> None:
    """Runs: state, progress, images per second, loss, ETA, attempt, last problem."""
    from launcher import render
    from launcher.runs import all_runs, runs_root
    from launcher.summary import Summary, summarise

    def shown() -> list[Path]:
        return all_runs(runs_root())[0 if everything else -_RECENT :]

    def summaries() -> list[Summary]:
        return [summarise(run) for run in shown()]

    if as_json:
        for summary in summaries():
            click.echo(json.dumps(summary.to_json()))
        return
    if watch:
        with render.live_status() as live:
            while True:
                render.show(live, summaries())
                time.sleep(_POLL_S)
    if not shown():
        render.say(f"no run yet in {runs_root()}", "next       univip demo")
        return
    render.status_table(summaries())
