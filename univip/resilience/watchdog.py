"""Names the rank that hangs, and ends it.

When one rank stops, every other one waits for it in the next collective, and all look alike from outside. A
thread beside the training loop looks at the phase its rank is in. A rank that takes much longer than it ever
took for this phase, and does not wait for others, is the one that holds them up: it says so at once, with the
stack of every thread in its log, and gives up if that goes on, so that a new round may begin.

A process that cannot run this thread (stopped, or a native call that keeps the interpreter), and a GPU that
hangs, which the host notices only where it reads the reduced values, are found by the time-out of the
collectives instead.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from univip.engine.phases import PhaseClock
from univip.observe import Observer

FLOOR_S = 3.0  # shorter than this is never told: a garbage collection, a busy machine
FACTOR = 5.0  # times the longest of the recent ones of the same phase
_POLL_S = 0.25
_COLLECTIVES = "torch/distributed/"
_AGENT = "torch/distributed/elastic/"  # what started the process is at the bottom of every stack
# Waiting for a slow disk is no reason to throw away what is being written.
_PATIENT = "checkpoint"
# Everybody waits for everybody here, on a GPU also without being inside a collective.
_TOGETHER = "reduce"
_STDERR = 2


class Watchdog:
    """Watches the thread that enters it.

    Args:
        clock: Of that thread.
        position: The data step it is at.
        observer: Told once of every stall.
        give_up_s: Seconds without progress after which `on_hang` is called.
        on_hang: Takes the reason in words; expected to end the process.
    """

    def __init__(
        self,
        clock: PhaseClock,
        *,
        position: Callable[[], int],
        observer: Observer,
        give_up_s: float,
        on_hang: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._position = position
        self._observer = observer
        self._give_up_s = give_up_s
        self._on_hang = on_hang
        self._watched = threading.get_ident()
        self._told: tuple[str, float] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def look(self, now: float) -> None:
        """Judge the phase that the thread is in.

        Args:
            now: As `time.perf_counter()`.
        """
        entered = self._clock.entered
        if entered is None:
            return
        phase, since = entered
        seconds = now - since
        recent = self._clock.recent[phase]
        is_slow = bool(recent) and seconds > max(FLOOR_S, FACTOR * max(recent))
        is_over = seconds > self._give_up_s
        if not (is_slow or is_over) or phase == _TOGETHER or self._waits_for_others():
            return
        if self._told != entered:
            self._told = entered
            faulthandler.dump_traceback(_STDERR)
            self._observer.record("stall", data_step=self._position(), phase=phase, seconds=seconds)
        if is_over and phase != _PATIENT:
            self._on_hang(
                f"no progress for {seconds:.0f} s in phase `{phase}` of data step {self._position()}; "
                "the log of this rank shows where every thread stands"
            )

    def _watch(self) -> None:
        while not self._end.wait(_POLL_S):
            self.look(time.perf_counter())

    def _waits_for_others(self) -> bool:
        frame = sys._current_frames().get(self._watched)
        while frame is not None:
            path = frame.f_code.co_filename
            if _COLLECTIVES in path and _AGENT not in path:
                return True
            frame = frame.f_back
        return False
