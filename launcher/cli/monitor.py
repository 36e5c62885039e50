"""`univip monitor`: one process on a login node serves the metrics of every run from their files."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import click


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9300, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines read it.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="Ask for the token in this file; written if absent. Needed where other machines may read.",
)
def command(port: int, host: str, token_file: Path | None) -> None:
    """Serve /metrics for Prometheus, until Ctrl-C; the page of `univip dash` and its JSON as well.

    Other users of this machine can read what it serves at 127.0.0.1; on a shared one give a --token-file.
    """
    from launcher.dash import open_server
    from launcher.runs import runs_root
    from monitoring.server import is_loopback
    from univip.errors import ConfigError

    if token_file is None and not is_loopback(host):
        raise ConfigError(
            "a server that other machines reach must ask for a token, but none is given.",
            where=f"--host {host}",
            fix=f"univip monitor --host {host} --token-file ~/.config/univip/token",
        )
    token = read_token(token_file) if token_file else ""
    runs = runs_root()
    with open_server("monitor", runs, host, port, token) as server:
        absent = "" if runs.exists() else " (no such folder yet)"
        name = f"[{host}]" if ":" in host else host
        click.echo(f"metrics of {runs}{absent} at http://{name}:{server.server_port}/metrics", err=True)
        server.serve_forever()


def read_token(path: Path) -> str:
    """The token in a file that only its owner may read; a new one if there is none."""
    import secrets

    from univip.errors import ConfigError

    path = path.expanduser()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass
    token = path.read_text(encoding="utf-8").strip()
    if not re.fullmatch(r"[\w.~+/=-]{16,}", token, re.ASCII) or path.stat().st_mode & 0o077:
        raise ConfigError(
            "the file of the token must hold at least 16 letters or digits and be readable by its owner "
            "only, but is not so.",
            where=str(path),
            fix=f"rm {shlex.quote(str(path))}  # a new one is written at the next start",
        )
    return token
