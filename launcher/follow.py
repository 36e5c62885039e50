"""Waits for a run to end and shows how it goes; the run does not know that somebody watches."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.outcomes import read_json
from jobs.requests import Request
from launcher import render
from launcher.runs import JOBS_FILE, RunState, State, read_state
from launcher.slurm import living_jobs
from launcher.summary import Summary, summarise

_POLL_S = 0.5
_SLURM_POLL_S = 30.0


def follow(run_dir: Path) -> bool:
    """Show progress until the run ends.

    Returns:
        Whether every stage is done.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after saying how to come back; the run goes on.
    """
    next_slurm_poll = time.monotonic() + _SLURM_POLL_S
    try:
        with render.Progress() as progress:
            while not (state := read_state(run_dir)).is_over():
                progress.update(_summary(run_dir, state))
                time.sleep(_POLL_S)
                if time.monotonic() >= next_slurm_poll:
                    next_slurm_poll = time.monotonic() + _SLURM_POLL_S
                    if _has_left_slurm(run_dir):
                        state = read_state(run_dir)
                        break
            progress.update(_summary(run_dir, state))
    except KeyboardInterrupt:
        name = run_dir.name
        render.say(
            "",
            "the run goes on.",
            f"next       univip status --watch; univip logs {name} -f; univip cancel {name}",
        )
        raise
    if state.state is State.done:
        return True
    render.say(
        f"{state.state} in {state.stage}: {state.cause or 'it ended without a word'}",
        f"  where: {run_dir}",
        f"  fix:   univip logs {run_dir.name}; then univip resume {run_dir.name}",
    )
    return False


def _summary(run_dir: Path, state: RunState) -> Summary:
    """Of the run that the current stage works on: the boxes of a pipeline are a run of their own."""
    request = Request.load(run_dir)
    stages = request.stages if request else []
    worked_on = next((stage.run for stage in stages if stage.kind == state.stage), run_dir.name)
    return summarise(run_dir.parent / worked_on, state)


def _has_left_slurm(run_dir: Path) -> bool:
    document = read_json(run_dir / JOBS_FILE)
    return document is not None and not living_jobs([job["id"] for job in document["jobs"]])
