"""`univip resume`: the same request again, with the configuration the run was started with."""

from __future__ import annotations

import shlex

import click

from launcher.cli import completing


@click.command()
@click.argument("run", shell_complete=completing.runs)
@click.argument("words", nargs=-1, metavar="")
@click.option("--wait", is_flag=True, help="Follow to the end; exit 0 only if every stage is done.")
@click.option("--take-over", is_flag=True, help="The machine it ran on is gone: go on with it on this one.")
def command(run: str, words: tuple[str, ...], wait: bool, take_over: bool) -> None:
    """Go on with a run that stopped, failed or was cancelled; finished stages are kept.

    With another `cluster.KEY=VALUE` it goes on by the same `univip submit` with that.
    """
    from jobs.requests import Request
    from launcher import render
    from launcher.errors import FAILED
    from launcher.plan import plan_again
    from launcher.runs import find_run
    from launcher.submission import submit
    from univip.errors import ConfigError

    run_dir = find_run(run)
    typed = run_dir / "overrides.txt"  # boxes made for a training have none
    overrides = typed.read_text(encoding="utf-8").splitlines() if typed.exists() else []
    if words:
        request = Request.load(run_dir)
        again = shlex.join(["univip", "submit", request.command, *overrides, *words] if request else words)
        raise ConfigError(
            f"`univip resume` must be given a run alone, but is given `{words[0]}` as well.",
            where="the command line",
            fix=again if request else f"univip submit ... {again}  # the request that it was made for",
        )
    if take_over:
        from launcher import takeover

        hosts = takeover.take_over(run_dir)
        render.say(f"taken over from {', '.join(hosts)}" if hosts else "nobody to take it over from")
    plan = plan_again(run_dir)
    render.say(*plan.lines())
    render.say(submit(plan, overrides).message)
    is_done = True
    if wait:
        from launcher.follow import follow

        is_done = follow(run_dir)
    click.echo(run_dir.name)
    if not is_done:
        raise click.exceptions.Exit(FAILED)
