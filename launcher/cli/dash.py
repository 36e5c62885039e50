"""`univip dash`: every run in a browser, from their files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9301, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines read it.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Ask for the token in this file; written if absent. For other machines: RUNS/.dash/token.",
)
@click.option(
    "--up", "action", flag_value="up", help="Leave it running, with Prometheus if that is installed."
)
@click.option("--down", "action", flag_value="down", help="Stop what --up started.")
def command(port: int, host: str, token_file: Path | None, action: str | None) -> None:
    """Serve the page of all runs, and /metrics, until Ctrl-C.

    Other users of this machine can read what it serves at 127.0.0.1; on a shared one give a --token-file.
    """
    from launcher import dash
    from launcher.render import say
    from launcher.runs import runs_root

    if action == "down":
        stopped = dash.down(runs_root())
        say(*(f"stopped    {name}" for name in stopped), *([] if stopped else ["nothing was running"]))
    elif action == "up":
        say(*dash.up(runs_root(), host, port, token_file))
    else:
        dash.serve(runs_root(), host, port, token_file, ready=say)
