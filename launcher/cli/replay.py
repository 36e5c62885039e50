"""`univip replay`: a bad step computed again, to see what went wrong in it."""

from __future__ import annotations

import subprocess
import sys

import click


@click.command()
@click.argument("run")
@click.argument("anomaly")
@click.option("--device", type=click.Choice(["cpu"]), help="Not on a GPU, even if the run was on one.")
@click.option("--float32", is_flag=True, help="Without bf16: does it go wrong all the same?")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(run: str, anomaly: str, device: str | None, float32: bool, as_json: bool) -> None:
    """Compute a bad step of RUN again and name the first operation with a value that is not finite.

    ANOMALY is a data step, or a folder of RUN's anomalies/.
    """
    from launcher.runs import find_run

    flags = [*(("--device", device) if device else ()), *(["--float32"] if float32 else [])]
    flags += ["--json"] if as_json else []
    # A process of its own: this one never loads torch. `-P`: not `jobs` of a checkout one stands in.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.replay", str(find_run(run)), anomaly, *flags], check=False
    )
    if done.returncode:
        raise click.exceptions.Exit(done.returncode)
