"""`univip monitor`: one process on a login node serves the metrics of every run from their files."""

from __future__ import annotations

import click

from monitoring.config import MonitoringConfig


@click.command()
@click.option("--port", default=MonitoringConfig().port, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets other machines read it.")
def command(port: int, host: str) -> None:
    """Serve /metrics for Prometheus, until Ctrl-C."""
    from launcher.runs import runs_root
    from monitoring.exporter import serve

    click.echo(f"metrics of {runs_root()} at http://{host}:{port}/metrics", err=True)
    serve(runs_root(), port, host)
