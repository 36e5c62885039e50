"""`univip bench`: how fast this version is on this machine, beside a reference measured with it."""

from __future__ import annotations

import json
import pkgutil
import tempfile
from pathlib import Path

import click

# Benchmark -> entry point, by name: running one loads torch or OpenCV.
_BENCHMARKS = {
    "step": "jobs.bench.step:step",
    "proposals": "jobs.bench.proposals:proposals",
    "filter": "jobs.bench.filter:filter_",
    "checkpoint": "jobs.bench.checkpoint:checkpoint",
    "guard": "jobs.bench.guard:guard",
    "restart": "jobs.bench.restart:restart",
    "exporter": "monitoring.bench:exporter",
}
_ON_FOLDERS = ("checkpoint", "exporter")  # the others look at photographs


@click.command()
@click.argument("name", metavar="NAME", type=click.Choice(list(_BENCHMARKS)))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE | GROUP=OPTION]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def command(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Measure one part, against a reference measured in turn with it.

    NAME is step: the whole training path, against the bare network on ready-made tensors; proposals:
    selective search, against OpenCV's; filter: both filtered lists of boxes, against one box at a time in
    Python; checkpoint: time that saves block the training loop, against torch.save in the loop; guard: what
    watches over a step, against the step; restart: the death of a worker to the next step, against the
    torchrun command; or exporter: the first scrape of 1,000 runs, against reading every line of one. Step,
    proposals, filter and guard are held on one core.

    Photographs are those that come with scikit-image; for proposals also your own: `data=coco data.root=...
    data.split=... proposals.mode=...`. Checkpoints (2 GB) and journals (3 GB) are written below TMPDIR.
    """
    from launcher import render
    from launcher.demo_data import copy_photographs, make_demo_data

    measure = pkgutil.resolve_name(_BENCHMARKS[name])
    with tempfile.TemporaryDirectory(prefix="univip-bench-") as folder:
        photographs = Path(folder) / "photographs"
        if name != "proposals" and overrides:
            raise click.UsageError(f"`univip bench {name}` takes no options: its sizes are fixed.")
        if name in _ON_FOLDERS:
            result = measure(Path(folder))
        elif name != "proposals":
            result = measure(make_demo_data(photographs))
        else:
            from jobs.compose import compose

            if not any(each.startswith("data.root=") for each in overrides):
                copy_photographs(photographs)
                overrides = ("data=folder", f"data.root={photographs}", *overrides)
            result = measure(compose(overrides))
    if as_json:
        click.echo(json.dumps(result))
        return
    unit = result["unit"]
    render.fact_table(
        f"univip bench {name}",
        [
            ("value", f"{result['value']:.4g} {unit}"),
            ("reference", f"{result['reference']:.4g} {unit}, {result['reference_name']}"),
            ("ratio", f"{result['ratio']:.3f}, {result['better']} is better"),
            *((key.replace("_", " "), _text(detail)) for key, detail in result["details"].items()),
        ],
    )


def _text(detail: object) -> str:
    if isinstance(detail, dict):
        return ", ".join(f"{name} {_text(value)}" for name, value in detail.items())
    return f"{detail:.4g}" if isinstance(detail, float) else str(detail)
