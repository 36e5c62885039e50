"""Many images to boxes: a process per core, each image on one of them.

A bad image is a status, never an exception, and that holds for the worst of them too: one that crashes its
process, gets it killed for its memory, or never ends. Each process holds one image at a time, so it is known
which one a process died of. That image is searched again alone, once the others are through: whoever was
killed for want of memory, or by accident, then succeeds. One that fails every time is given up and named.

Processes are spawned, so nothing of the parent's threads is copied in an unknown state, and each leaves when
the parent is gone, also after SIGKILL, when nobody can tell them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from univip.data.decode import decode
from univip.errors import ImageError, UnivipError
from univip.proposals.cut import PATIENCE, search_seconds
from univip.proposals.search import prepare_engine, selective_search

if TYPE_CHECKING:
    from univip.types import Boxes

# Why an image that can be decoded has no boxes, beside `univip.data.decode.REASONS`.
CRASHED = "crashed"  # its process died every time
TIMED_OUT = "timed_out"

TRIES = 3  # of one image, the first beside others, the rest alone
MAX_DEATHS = 10  # of processes that searched nothing: then it is not the images
_START_LIMIT_S = 600.0  # compiling included
_END_LIMIT_S = 10.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchSettings:
    """What is the same for all images of a data set."""

    mode: str
    engine: str
    min_sizes: tuple[int, ...]  # px
    max_ratio: float
    max_iou: float
    exif: bool
    max_pixels: int


class SearchTask(NamedTuple):
    """One image to search."""

    path: Path
    image_id: int
    size: tuple[int, int]  # width, height in pixels


class SearchResult(NamedTuple):
    """Boxes of one image, or the reason why there are none."""

    reason: str  # empty, one of `univip.data.decode.REASONS`, CRASHED or TIMED_OUT
    raw: Boxes
    filtered: list[Boxes]  # one per minimum size
    seconds: float


def load(engine: str) -> None:
    """Load all that a search needs; the first call of a user on a kind of machine compiles it as well."""
    from univip.proposals import filters  # noqa: F401 - numba: a second, which only who searches needs

    prepare_engine(engine)


def search_image(task: SearchTask, settings: SearchSettings) -> SearchResult:
    """Decode, search and filter one image."""
    from univip.proposals.filters import filter_boxes

    start = time.perf_counter()
    try:
        image = decode(task.path, exif=settings.exif, max_pixels=settings.max_pixels, size=task.size)
    except ImageError as error:
        return _without_boxes(error.reason, settings, time.perf_counter() - start)
    raw = selective_search(image, mode=settings.mode, engine=settings.engine, key=task.image_id)
    # Here rather than at the merge, where it would wait for one core.
    filtered = [
        filter_boxes(raw, min_size_px=size, max_ratio=settings.max_ratio, max_iou=settings.max_iou)
        for size in settings.min_sizes
    ]
    return SearchResult("", raw, filtered, time.perf_counter() - start)


def search_images(
    tasks: Sequence[SearchTask], settings: SearchSettings, *, processes: int, timeout_s: float
) -> Generator[tuple[int, SearchResult]]:
    """Search all images, yielding (position in `tasks`, result) as they finish.

    Closing the generator kills the processes.

    Args:
        tasks: The images.
        settings: What is the same for all.
        processes: Number of processes; 0 = one per core this process may use.
        timeout_s: After which an image is stuck; large ones have `PATIENCE` times their usual cost.

    Raises:
        UnivipError: If no process can search anything.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(tasks))
    waiting, suspects = deque(range(len(tasks))), deque[int]()
    tries, lost_s = Counter[int](), dict.fromkeys(range(len(tasks)), 0.0)
    searched = failed_starts = 0
    searchers: list[_Searcher] = []

    def hire(position: int) -> None:
        searchers.append(_Searcher(settings))
        searchers[-1].take(position, tasks[position], timeout_s)

    try:
        while waiting or suspects or searchers:
            while waiting and len(searchers) < processes:
                hire(waiting.popleft())
            if suspects and not searchers:
                hire(suspects.popleft())
            for searcher in _ready(searchers):
                position, answer = searcher.position, searcher.answer()
                if answer is None:
                    failed_starts = 0
                    continue
                if isinstance(answer, UnivipError):
                    raise answer
                if isinstance(answer, SearchResult):
                    searched += 1
                    if waiting:
                        searcher.take(following := waiting.popleft(), tasks[following], timeout_s)
                    else:
                        searchers.remove(searcher)
                        searcher.end()
                    yield position, answer
                    continue
                searchers.remove(searcher)
                failed_starts += not answer.has_started
                tries[position] += answer.has_started
                lost_s[position] += answer.seconds
                _logger.warning("%s: %s", tasks[position].path, answer.words)
                if failed_starts == MAX_DEATHS or (searched == 0 and tries.total() == MAX_DEATHS):
                    raise _cannot_search(tasks[position].path, answer.words)
                if tries[position] < TRIES:
                    suspects.append(position)
                else:
                    yield position, _without_boxes(answer.reason, settings, lost_s[position])
    finally:
        for searcher in searchers:
            searcher.end()


class _Death(NamedTuple):
    """How a process ended that should not have."""

    reason: str  # CRASHED or TIMED_OUT
    words: str
    has_started: bool
    seconds: float  # that it spent on its image


class _Searcher:
    """A process, and the image it holds.

    Attributes:
        position: Of its image in the tasks.
        deadline_s: On the monotonic clock; then it is stuck.
    """

    def __init__(self, settings: SearchSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
        self._process.start()
        theirs.close()  # so that reading ends when the process does
        self._settings = settings
        self._has_started = False
        self.position = -1
        self.deadline_s = 0.0

    def take(self, position: int, task: SearchTask, timeout_s: float) -> None:
        """Hand it the next image; a process that has just died is noticed when it is to answer."""
        self.position = position
        usual_s = search_seconds(task.size[0] * task.size[1], self._settings.engine, self._settings.mode)
        self._limit_s = max(timeout_s, PATIENCE * usual_s)
        self._begin(self._limit_s if self._has_started else _START_LIMIT_S)
        with suppress(OSError):
            self.connection.send(task)

    def answer(self) -> SearchResult | UnivipError | _Death | None:
        """What it has to say, if it is `_ready`; None if only that it has started."""
        seconds = time.monotonic() - self._since_s
        if not self.connection.poll():
            self.end()
            what = "searching" if self._has_started else "starting a process"
            return _Death(TIMED_OUT, f"{what} took more than {seconds:.0f} s", self._has_started, seconds)
        try:
            message: SearchResult | UnivipError | None = self.connection.recv()
        except (EOFError, OSError):  # it is gone, perhaps in the middle of a message
            self.end()
            words = f"the process searching it died (exit code {self._process.exitcode})"
            return _Death(CRASHED, words, self._has_started, seconds)
        if message is None:
            self._has_started = True
            self._begin(self._limit_s)
        return message

    def end(self) -> None:
        """Kill it; what it holds is searched again or not wanted."""
        self._process.kill()
        self._process.join(_END_LIMIT_S)  # one that waits for a dead file system cannot even be killed
        self.connection.close()

    def _begin(self, limit_s: float) -> None:
        self._since_s = time.monotonic()
        self.deadline_s = self._since_s + limit_s


def _ready(searchers: Sequence[_Searcher]) -> list[_Searcher]:
    """Wait for those that have something to say, died, or are stuck."""
    first_s = min(searcher.deadline_s for searcher in searchers) - time.monotonic()
    speaking = wait([searcher.connection for searcher in searchers], max(0.0, first_s))
    now_s = time.monotonic()
    return [each for each in searchers if each.connection in speaking or each.deadline_s <= now_s]


def _serve(connection: Connection, settings: SearchSettings) -> None:
    """What a process does: load everything, then search one image after the other, on one thread."""
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGUSR2):  # Ctrl-C, and SLURM's warning before the time limit
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, daemon=True).start()
    load(settings.engine)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # when the parent has no more use for it
        connection.send(None)
        while True:
            task = connection.recv()
            try:
                answer: SearchResult | UnivipError = search_image(task, settings)
            except UnivipError as error:  # of the request: no image could be searched
                answer = error
            connection.send(answer)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _without_boxes(reason: str, settings: SearchSettings, seconds: float) -> SearchResult:
    none = np.empty((0, 4), np.int32)
    return SearchResult(reason, none, [none for _ in settings.min_sizes], seconds)


def _cannot_search(path: Path, words: str) -> UnivipError:
    return UnivipError(
        f"searching must work for some image, but {MAX_DEATHS} processes in a row did nothing: {words}.",
        where=f"{path} was the last one",
        fix="proposals.processes=N with fewer processes, or more memory; finished shards are kept",
    )
