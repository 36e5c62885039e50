"""`univip submit`: compose, check, plan, and hand the stages over."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from launcher.cli import completing
from launcher.errors import FAILED

if TYPE_CHECKING:
    from launcher.plan import Plan


@click.command()
@click.argument("what", type=click.Choice(["proposals", "train", "evaluate", "pipeline"]))
@click.argument(
    "overrides", nargs=-1, metavar="[KEY=VALUE | GROUP=OPTION]...", shell_complete=completing.overrides
)
@click.option("--dry-run", is_flag=True, help="Print configuration, plan and sbatch scripts; write nothing.")
@click.option("--json", "as_json", is_flag=True, help='Print {"run", "run_dir", "jobs"}.')
@click.option("--wait", is_flag=True, help="Follow to the end; exit 0 only if every stage is done.")
@click.option("--fork", is_flag=True, help="Begin the training anew, beside the run that there is.")
@click.option("--replace", "replaces", is_flag=True, help="Put that run aside under another name instead.")
def command(
    what: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    wait: bool,
    fork: bool,
    replaces: bool,
) -> None:
    """Make boxes (proposals), train, evaluate, or all of it (pipeline).

    The same request finds the same run: it reports or resumes it, and never starts a twin, unless --fork or
    --replace asks for a new one. Nothing is deleted. --dry-run prints every key with its value, and
    completion lists the keys.

    \b
    univip submit pipeline data=coco data.root=/data/coco experiment=coco_univip
    univip submit pipeline data=folder data.root=~/photographs debug=small --wait
    """  # noqa: D301 - a backspace is how click is told to keep the lines
    from jobs.compose import compose
    from launcher import render
    from launcher.plan import make_plan
    from launcher.runs import what_next
    from launcher.submission import submit

    if fork and replaces:
        raise click.UsageError("either --fork or --replace may be given, but not both.")
    if (fork or replaces) and what not in ("train", "pipeline"):
        raise click.UsageError(f"--fork and --replace begin a training anew; {what} has none.")
    plan = make_plan(what, compose(overrides), forks=fork)
    if dry_run:
        _dry_run(plan)
        return
    render.say(*plan.lines())
    done = submit(plan, overrides, forks=fork, replaces=replaces)
    name = done.run_dir.name
    render.say(done.message, what_next(done.run_dir, "status --watch", "logs RUN -f", "show RUN"))
    if as_json:
        jobs = [{"stage": stage, "id": job_id} for stage, job_id in done.jobs]
        click.echo(json.dumps({"run": name, "run_dir": str(done.run_dir), "jobs": jobs}))
    is_done = True
    if wait:
        from launcher.follow import follow

        is_done = follow(done.run_dir)
    if not as_json:
        click.echo(name)
    if not is_done:
        raise click.exceptions.Exit(FAILED)


def _dry_run(plan: Plan) -> None:
    from jobs.config import ClusterKind, to_yaml
    from launcher.freeze import code_dir
    from launcher.sbatch import render_slurm, slurm_jobs

    click.echo("# configuration")
    click.echo(to_yaml(plan.config, plan.header))
    click.echo("# plan")
    click.echo("\n".join(plan.lines()))
    if plan.config.cluster.kind is ClusterKind.slurm:
        jobs = slurm_jobs(plan)
        for job, script in zip(jobs, render_slurm(jobs, code_dir(plan.run_dir)), strict=True):
            click.echo(f"\n# sbatch script of {job.stage.kind}")
            click.echo(script)
