"""Starts the supervisor of a run on this machine, and waits until it owns the run."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from jobs.attempts import start_ticks
from launcher.errors import RefusedError
from launcher.freeze import environment
from launcher.runs import Owner
from univip.errors import UnivipError

_START_TIMEOUT_S = 120.0
_START_POLL_S = 0.05


def start_local(run_dir: Path, request_id: str, code: Path) -> int:
    """Start the supervisor of a run on a copy of the code, and wait until it owns the run.

    Returns:
        Its process id.

    Raises:
        RefusedError: If another supervisor owns the run.
        UnivipError: If it does not start.
    """
    log_path = run_dir / "logs" / "supervisor.log"
    log_path.parent.mkdir(exist_ok=True)
    with log_path.open("ab") as log:
        command = [sys.executable, "-m", "launcher.detach", str(run_dir)]
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=False,
            env={**os.environ, **environment(code)},
        )
    controller = _newest_controller(run_dir)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        is_over = not start_ticks(controller)  # looked at first: it may write the file and end in between
        owner = Owner.load(run_dir)
        if owner and owner.request == request_id:
            return owner.pid
        if owner and owner.is_alive():
            raise RefusedError(
                f"run `{run_dir.name}` must be free, but process {owner.pid} on {owner.host} works on it.",
                where=str(run_dir),
                fix=f"univip logs {shlex.quote(str(run_dir))} -f",
            )
        if is_over:
            break
        time.sleep(_START_POLL_S)
    raise UnivipError(
        "the local supervisor must start, but did not.",
        where=str(log_path.parent),
        fix=f"univip logs {shlex.quote(str(run_dir))}",
    )


def _newest_controller(run_dir: Path) -> int:
    """Process id of the submitit controller started last, 0 if there is none."""
    pickles = sorted((run_dir / "submitit").glob("*_submitted.pkl"), key=lambda path: path.stat().st_mtime)
    return int(pickles[-1].name.partition("_")[0]) if pickles else 0
