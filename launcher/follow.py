"""Waits for a run to end and shows how it goes; the run does not know that somebody watches."""

from __future__ import annotations

import time
from pathlib import Path

from jobs.requests import Request
from launcher import render
from launcher.runs import what_next
from launcher.states import RunState, State, read_state
from launcher.summary import summarise

_POLL_S = 0.5
_LAST_LINES = 5


def follow(run_dir: Path) -> bool:
    """Show progress until the run ends.

    Returns:
        Whether every stage of the request is done.

    Raises:
        KeyboardInterrupt: On Ctrl-C, after saying how to come back; the run goes on.
    """
    try:
        with render.Progress() as progress:
            while not (state := read_state(run_dir)).is_over():
                progress.update(summarise(_worked_on(run_dir, state), state))
                time.sleep(_POLL_S)
            progress.update(summarise(_worked_on(run_dir, state), state))
    except KeyboardInterrupt:
        render.say("", "the run goes on.", what_next(run_dir, "status --watch", "logs RUN -f", "cancel RUN"))
        raise
    if _is_done(run_dir, state):
        return True
    render.say(ending(run_dir, state))
    render.say(*_last_words(run_dir, state))
    render.say(what_next(run_dir, "logs RUN", "show RUN", "resume RUN"))
    return False


def ending(run_dir: Path, state: RunState) -> str:
    """How a run that is over has ended, in one line or, with what to do about it, in three."""
    if _is_done(run_dir, state):
        return render.progress_line(summarise(run_dir, state))
    why = ": ".join(filter(None, [state.cause, state.message]))
    return f"{state.state} in {state.stage}: {why or 'without a word'}"


def _is_done(run_dir: Path, state: RunState) -> bool:
    request = Request.load(run_dir)
    return state.state is State.done or bool(request and not request.remaining(run_dir.parent))


def _last_words(run_dir: Path, state: RunState) -> list[str]:
    """The end of what the stage that failed printed."""
    log = _worked_on(run_dir, state) / "logs" / f"{state.stage}.log"
    if not log.exists():
        return []
    return [
        f"  | {line}"
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    ]


def _worked_on(run_dir: Path, state: RunState) -> Path:
    """The run that the current stage works on: the boxes of a pipeline are a run of their own."""
    request = Request.load(run_dir)
    stages = request.stages if request else []
    return run_dir.parent / next((stage.run for stage in stages if stage.kind == state.stage), run_dir.name)
