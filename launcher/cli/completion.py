"""`univip completion`: verbs, runs and configuration keys by Tab."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes `univip` in a shell.

    For bash, put this into ~/.bashrc: eval "$(univip completion bash)"
    """
    completion = get_completion_class(shell)
    assert completion is not None
    click.echo(completion(ctx.find_root().command, {}, "univip", "_UNIVIP_COMPLETE").source())
