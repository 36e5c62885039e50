"""`univip demo`: the main job from photographs to evaluation, with two faults planted on the way."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.plan import Plan

# A NaN in the network at data step 30, and worker 1 killed at data step 75.
FAULTS = "nan:parameter@30,kill:1@75"
_FAULTS_VARIABLE = "UNIVIP_PLANT"


@click.command()
@click.option("--again", is_flag=True, help="A new run, with another seed, even if there is one already.")
def command(again: bool) -> None:
    """Make boxes, train and evaluate on photographs bundled with scikit-image: a few minutes on two cores.

    On the way a NaN is planted and a worker is killed, so that you see the run survive both.
    """
    from launcher import render
    from launcher.demo_report import report
    from launcher.errors import FAILED
    from launcher.follow import follow
    from launcher.submission import submit

    begun = time.monotonic()
    seed = 0
    plan, overrides = _plan(seed)
    while again and plan.run_dir.exists():
        seed += 1
        plan, overrides = _plan(seed)
    os.environ[_FAULTS_VARIABLE] = FAULTS
    render.say(*plan.lines(), f"faults     {FAULTS}")
    submitted = submit(plan, overrides)
    render.say(submitted.message)
    is_done = follow(plan.run_dir)
    render.fact_table("univip demo", report(plan))
    if submitted.is_new:
        render.say(f"took       {render.duration(time.monotonic() - begun)}")
    render.say("next       univip submit pipeline data=folder data.root=/your/photographs debug=small --wait")
    click.echo(plan.header.id)
    if not is_done:
        raise click.exceptions.Exit(FAILED)


def _plan(seed: int) -> tuple[Plan, list[str]]:
    from jobs.compose import compose
    from launcher.demo_data import make_demo_data
    from launcher.plan import make_plan
    from launcher.runs import runs_root

    root = make_demo_data(runs_root() / "demo-data")
    overrides = ["experiment=demo", f"data.root='{root}'", f"train.seed={seed}"]
    return make_plan("pipeline", compose(overrides)), overrides
