"""`univip audit`: was every sample seen exactly once in each epoch?"""

from __future__ import annotations

import json
import pkgutil
from typing import Any

import click

from launcher.cli import completing

_SHOWN = 10  # data steps or epochs that are listed before "and others"


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option(
    "--views",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Make the views of that many data steps again, from the photographs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(run: str, views: int, as_json: bool) -> int:
    """Hold the samples that RUN was trained on against its plan, up to the newest checkpoint.

    Ends with 0 if every data step was applied once with the planned samples or left out by a decision of the
    ledger, else with 1.
    """
    from launcher import render
    from launcher.runs import find_run

    run_dir = find_run(run)
    # By name: reading the index loads Arrow, and making views torch.
    found: dict[str, Any] = pkgutil.resolve_name("jobs.audit:audit")(run_dir, views=views)
    if as_json:
        click.echo(json.dumps(found))
    else:
        render.fact_table(f"audit of {run_dir.name}", _rows(found))
    return 0 if found["is_proved"] else 1


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    batch = found["global_batch"]
    lost = sum(each["stop"] - each["start"] for each in found["lost"])
    rows = [
        ("data steps", f"{found['data_steps']:,} of {batch:,} samples, {found['num_images']:,} images"),
        ("applied", f"{found['applied']:,}, each once and with the planned samples"),
        ("lost", f"{lost * batch:,} samples in {lost:,} data steps, by decision"),
    ]
    for each in found["lost"]:
        last = each["stop"] - 1
        steps = f"{each['start']} to {last}" if each["start"] < last else str(last)
        rows.append(("", f"{steps}, {each['why']}"))
    rows += [
        ("wrong", _some(found["wrong"], "data steps with other samples than planned")),
        ("unexplained", _some(found["unexplained"], "data steps neither applied nor left out by decision")),
        ("whole epochs", f"{found['whole_epochs']:,}, every sample exactly once"),
    ]
    losses = [f"{epoch} ({count:,})" for epoch, count in found["lost_by_epoch"].items()]
    if losses:
        more = ", ..." if len(losses) > _SHOWN else ""
        rows.append(("with losses", f"epochs {', '.join(losses[:_SHOWN])}{more}"))
    if found["views_checked"]:
        wrong = _some(found["views_wrong"], "data steps with other views")
        rows.append(("views", f"of {found['views_checked']} data steps made again: {wrong}"))
    rows.append(("verdict", "proved" if found["is_proved"] else "NOT proved"))
    return rows


def _some(data_steps: list[int], what: str) -> str:
    if not data_steps:
        return f"0 {what}"
    more = ", ..." if len(data_steps) > _SHOWN else ""
    return f"{len(data_steps):,} {what}: {', '.join(map(str, data_steps[:_SHOWN]))}{more}"
