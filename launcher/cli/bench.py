"""`univip bench`: how fast this version is on this machine, beside a reference measured with it."""

from __future__ import annotations

import json
import pkgutil
import tempfile
from pathlib import Path

import click

# Benchmark -> entry point, by name: running one loads torch. Each takes the folder of photographs.
_BENCHMARKS = {"step": "jobs.bench:step", "filter": "jobs.bench_filter:filter_"}


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(list(_BENCHMARKS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(name: str, as_json: bool) -> None:
    """Measure one part on one core, against a reference measured in turn with it: about half a minute.

    NAME is step: the whole training path, against the bare network on ready-made tensors; or filter: both
    filtered lists of boxes, against one box at a time in Python.
    """
    from launcher import render
    from launcher.demo_data import make_demo_data

    with tempfile.TemporaryDirectory(prefix="univip-bench-") as folder:
        photographs = make_demo_data(Path(folder) / "photographs")
        result = pkgutil.resolve_name(_BENCHMARKS[name])(photographs)
    if as_json:
        click.echo(json.dumps(result))
        return
    unit = result["unit"]
    render.fact_table(
        f"univip bench {name}",
        [
            ("value", f"{result['value']:.1f} {unit}"),
            ("reference", f"{result['reference']:.1f} {unit}, {result['reference_name']}"),
            ("ratio", f"{result['ratio']:.3f}, {result['better']} is better"),
            *((key.replace("_", " "), _text(detail)) for key, detail in result["details"].items()),
        ],
    )


def _text(detail: object) -> str:
    if isinstance(detail, dict):
        return ", ".join(f"{name} {_text(value)}" for name, value in detail.items())
    return f"{detail:.4g}" if isinstance(detail, float) else str(detail)
