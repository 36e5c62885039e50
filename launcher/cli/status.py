"""`univip status`: one line per run, from its files."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.summary import Summary

_POLL_S = 2.0
_RECENT = 20


@click.command()
@click.option("--watch", is_flag=True, help="Draw the table anew every 2 s, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per run.")
@click.option("--all", "everything", is_flag=True, help=f"Every run, not only the newest {_RECENT}.")
def command(watch: bool, as_json: bool, everything: bool) -> None:
    """Runs: state, progress, images per second, loss, ETA, attempt, last problem.

    Where SLURM does not answer, it says so on stderr, shows what is known, and ends with 0.
    """
    from launcher import render
    from launcher.runs import all_runs, runs_root
    from launcher.summary import summarise

    def summaries() -> list[Summary]:
        return [summarise(run) for run in all_runs(runs_root())[0 if everything else -_RECENT :]]

    if watch and not as_json:
        with render.live_status() as live:
            while True:
                found = summaries()
                render.show(live, found, _silence_of_slurm(found))
                time.sleep(_POLL_S)
    found = summaries()
    if as_json:
        for summary in found:
            click.echo(json.dumps(summary.to_json()))
    elif found:
        render.status_table(found)
    else:
        render.say(f"no run yet in {runs_root()}", "next       univip demo")
    if silence := _silence_of_slurm(found):
        render.say(silence)


def _silence_of_slurm(summaries: list[Summary]) -> str:
    """That SLURM does not answer, where one of the runs may have a job there; else nothing."""
    from launcher.queue import look
    from launcher.render import moment
    from launcher.runs import SubmittedJobs, runs_root

    for summary in summaries:
        run_dir = runs_root() / summary.id
        if summary.state.is_over() or not (jobs := SubmittedJobs.load(run_dir)):
            continue
        # Asked just now for the state of the run, so this costs SLURM nothing.
        queue = look(run_dir.parent, jobs.ids.values(), user=run_dir.stat().st_uid)
        if queue.error:
            why = queue.error.partition("; ")[0].rstrip(".")  # the first of what its command said
            at = moment(queue.time)
            return f"SLURM did not answer at {at} ({why}); states are as it told before, and as files tell."
    return ""
