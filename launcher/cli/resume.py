"""`univip resume`: the same request again, with the configuration the run was started with."""

from __future__ import annotations

import click

from launcher.cli import completing


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.option("--wait", is_flag=True, help="Follow to the end; exit 0 only if every stage is done.")
@click.option("--take-over", is_flag=True, help="The machine it ran on is gone: go on with it on this one.")
def command(run: str, wait: bool, take_over: bool) -> None:
    """Go on with a run that stopped, failed or was cancelled; finished stages are kept."""
    from launcher import render
    from launcher.errors import FAILED
    from launcher.plan import plan_again
    from launcher.runs import find_run
    from launcher.submission import submit

    run_dir = find_run(run)
    if take_over:
        from launcher import takeover

        hosts = takeover.take_over(run_dir)
        render.say(f"taken over from {', '.join(hosts)}" if hosts else "nobody to take it over from")
    plan = plan_again(run_dir)
    render.say(*plan.lines())
    typed = run_dir / "overrides.txt"  # boxes made for a training have none
    overrides = typed.read_text(encoding="utf-8").splitlines() if typed.exists() else []
    render.say(submit(plan, overrides).message)
    is_done = True
    if wait:
        from launcher.follow import follow

        is_done = follow(run_dir)
    click.echo(run_dir.name)
    if not is_done:
        raise click.exceptions.Exit(FAILED)
