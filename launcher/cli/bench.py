"""`univip bench`: how fast this version is on this machine, beside a reference measured with it."""

from __future__ import annotations

import json
import pkgutil
import tempfile
from pathlib import Path

import click

# Benchmark -> entry point, by name: running one may load torch. Each takes a folder.
_BENCHMARKS = {"step": "jobs.bench:step", "exporter": "monitoring.bench:exporter"}
_NEEDS_PHOTOGRAPHS = {"step"}


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(list(_BENCHMARKS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(name: str, as_json: bool) -> None:
    """Measure one part on one core, against a reference measured beside it: about half a minute.

    NAME is step: the whole training path, against the bare network on ready-made tensors; or exporter: the
    first scrape of 1,000 runs, against reading every line of one (3 GB in the folder for temporary files).
    """
    from launcher import render
    from launcher.demo_data import make_demo_data

    with tempfile.TemporaryDirectory(prefix="univip-bench-") as folder:
        data = make_demo_data(Path(folder) / "photographs") if name in _NEEDS_PHOTOGRAPHS else Path(folder)
        result = pkgutil.resolve_name(_BENCHMARKS[name])(data)
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
