"""How an agent stops: what a signal of a scheduler or a terminal asks for, and when there is no more waiting.

The first signal makes a `stop` file. Rank 0 watches for it, and all workers save their state at the end of
the same step. A second signal, or the end of the grace before a step does, ends them as they are: what the
scheduler would do a moment later, but with an outcome, and nothing left behind.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from jobs.attempts import STOP_FILE

SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR2, signal.SIGINT})
# SLURM and srun forward the same signal, several times within milliseconds: that is one request.
_SAME_REQUEST_S = 1.0
_MARGIN_S = 10.0  # to end the workers and take leave of other nodes, before the scheduler ends this process


class OutOfTimeError(Exception):
    """The workers must be ended, whatever they are doing."""


class StopRequest:
    """Whether this agent was asked to stop, and how urgently.

    Args:
        signal_delay_s: From the scheduler's first signal to its SIGKILL.
    """

    def __init__(self, signal_delay_s: float) -> None:
        self._grace_s = max(signal_delay_s - _MARGIN_S, signal_delay_s / 2)
        self._asked_at: float | None = None
        self._is_urgent = False

    def listen(self, directory: Path) -> None:
        """From now on signals are requests to stop; the folder is that of the attempt."""

        def take(number: int, frame: FrameType | None) -> None:
            self.ask()
            (directory / STOP_FILE).touch()

        for number in SIGNALS:
            signal.signal(number, take)

    def ask(self) -> None:
        """Take one signal."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at >= _SAME_REQUEST_S:
            self._is_urgent = True

    def check(self) -> None:
        """Called again and again while the agent waits for anything.

        Raises:
            OutOfTimeError: After a second signal, or once the grace is over.
        """
        if self._is_urgent:
            raise OutOfTimeError("ended at once by a second signal: the next attempt begins at a checkpoint")
        if self._asked_at is not None and time.monotonic() - self._asked_at > self._grace_s:
            raise OutOfTimeError(
                f"no step ended within {self._grace_s:.0f} s after the signal, so the workers were ended: "
                "the next attempt begins at a checkpoint"
            )
