"""`univip proposals show` and `stats`: look at boxes, and at the samples made with them."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path

import click

from launcher.cli import completing


@click.command()
@click.argument("image")
@click.argument("run", shell_complete=completing.runs, default="@last")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="PNG file (default: ID.png here, or ID-epoch-N.png with --sample).",
)
@click.option("--sample", is_flag=True, help="Draw the pixels of a sample: scenes, instances, augmented.")
@click.option(
    "--epoch", type=click.IntRange(min=0), default=0, help="Which sample of the image (default: 0)."
)
def show(image: str, run: str, output: Path | None, sample: bool, epoch: int) -> None:
    """Draw the boxes of an image: kept, dropped, and chosen for a sample.

    IMAGE is an id, a file name, or a row such as #0; RUN has made the boxes or uses them (default: the newest
    run). With --sample, RUN is a training run, and the picture shows what it trains on in that epoch.
    """
    from launcher.runs import find_run

    # By name: drawing loads OpenCV and Arrow, and a sample torch.
    name = "write_sample" if sample else "write_picture"
    write = pkgutil.resolve_name(f"jobs.picture:{name}")
    click.echo(write(find_run(run), image, output, epoch=epoch))


@click.command()
@click.argument("run", shell_complete=completing.runs, default="@last")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Plot (default: RUN-boxes.png here).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and plot only with -o.")
def stats(run: str, output: Path | None, as_json: bool) -> None:
    """Count boxes per image, and how often a training of RUN would have to invent some.

    RUN has made the boxes or uses them (default: the newest run). The fallback rate is the share of samples
    without an overlap that holds K proposals in any trial, so that at least one box is random; it is taken
    from the first 2,000 samples, drawn as a training with the run's seed and options draws them.
    """
    from launcher import render
    from launcher.runs import find_run

    run_dir = find_run(run)
    measure = pkgutil.resolve_name("jobs.statistics:box_statistics")
    plot = output or (None if as_json else Path(f"{run_dir.name}-boxes.png"))
    found = measure(run_dir, plot)
    if as_json:
        click.echo(json.dumps(found))
        return
    failed = ", ".join(f"{number:,} {reason}" for reason, number in found["failed"].items())
    title = f"{run_dir.name}: {found['images']:,} images" + (f", {failed}" if failed else "")
    heads = [
        "boxes per image",
        "total",
        "mean",
        "5 %",
        "median",
        "95 %",
        f"below K={found['num_boxes']}",
        "none",
    ]
    rows = [
        [
            "all" if name == "raw" else f"list of {name.removeprefix('min_')} px",
            *(f"{spread[each]:,.0f}" for each in ("total", "mean", "p5", "median", "p95") if spread),
            *(f"{spread[each]:.2%}" for each in ("share_below_k", "share_without") if spread),
        ]
        for name, spread in found["boxes_per_image"].items()
    ]
    render.table(title, heads, rows)
    samples = found["samples"]
    low, high = samples["fallback_margin"]
    facts = [
        ("fallback", f"{samples['fallback_rate']:.2%} (95 %: {low:.2%} to {high:.2%})"),
        ("random boxes", f"{samples['random_box_share']:.2%} of all"),
        ("too small", f"{samples['too_small_rate']:.2%}"),
        ("trials", f"{samples['mean_trials']:.1f} on average"),
    ]
    render.fact_table(f"first {samples['number']:,} samples", facts)
    click.echo(plot)
