"""`univip monitor`: one process on a login node serves the metrics of every run from their files."""

from __future__ import annotations

import click


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9300, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines read it.")
def command(port: int, host: str) -> None:
    """Serve /metrics for Prometheus, until Ctrl-C."""
    from launcher.runs import runs_root
    from monitoring.exporter import serve
    from univip.errors import UnivipError

    click.echo(f"metrics of {runs_root()} at http://{host}:{port}/metrics", err=True)
    try:
        serve(runs_root(), port, host)
    except OSError as error:
        raise UnivipError(
            f"the address must be free to serve at, but is not: {error.strerror or error}.",
            where=f"{host}:{port}",
            fix=f"univip monitor --port {port + 1 if port < 65535 else 9300}",
        ) from error
