"""How an agent stops: what a signal of a scheduler or a terminal asks for, and when there is no more waiting.

The first signal makes a `stop` file. Rank 0 watches for it, and all workers save their state at the end of
the same step. A second signal, or the end of the grace before a step does, ends them as they are: what the
scheduler would do a moment later, but with an outcome, and nothing left behind.

The request also holds where no file can be made, as on a full disk. The agent then knows it from memory, and
so do those of other nodes, which the scheduler signals as well. The workers know nothing but the file: they
train on until it can be made after all or the agent ends them, and the next attempt begins at a checkpoint.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from jobs.attempts import STOP_FILE

SIGNALS = frozenset({signal.SIGTERM, signal.SIGUSR2, signal.SIGINT})
# SLURM and srun forward the same signal, several times within milliseconds: that is one request.
_SAME_REQUEST_S = 1.0
_TRY_AGAIN_S = 1.0  # to make the file
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
        self._file: Path | None = None
        self._tried_at = 0.0
        self._refusal = ""  # why the file could not be made
        self._is_told = False  # of that

    def listen(self, directory: Path) -> None:
        """From now on signals are requests to stop; the folder is that of the attempt."""
        self._file = directory / STOP_FILE

        def take(number: int, frame: FrameType | None) -> None:
            self.ask()
            self._make_file()

        for number in SIGNALS:
            signal.signal(number, take)

    def ask(self) -> None:
        """Take one signal."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at >= _SAME_REQUEST_S:
            self._is_urgent = True

    def is_asked(self) -> bool:
        """Whether this agent was asked, or that of another node wrote down that it was."""
        return self._asked_at is not None or (self._file is not None and self._file.exists())

    def check(self) -> None:
        """Called again and again while the agent waits for anything.

        Raises:
            OutOfTimeError: After a second signal, or once the grace is over.
        """
        if self._refusal and time.monotonic() - self._tried_at >= _TRY_AGAIN_S:
            if not self._is_told:
                sys.stderr.write(f"the workers cannot be told to stop: {self._refusal}\n")
            self._is_told = True
            self._make_file()
        if self._is_urgent:
            raise OutOfTimeError("ended at once by a second signal: the next attempt begins at a checkpoint")
        if self._asked_at is not None and time.monotonic() - self._asked_at > self._grace_s:
            why = f" (they could not be told to stop: {self._refusal})" if self._refusal else ""
            raise OutOfTimeError(
                f"no step ended within {self._grace_s:.0f} s after the signal, so the workers were ended{why}"
                ": the next attempt begins at a checkpoint"
            )

    def _make_file(self) -> None:
        """Tell the workers. What goes wrong is told later: a signal may have come while something is told."""
        assert self._file is not None
        self._tried_at = time.monotonic()
        try:
            self._file.touch()
            self._refusal = ""
        except OSError as error:
            self._refusal = str(error)
