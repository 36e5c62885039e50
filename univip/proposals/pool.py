"""Many images to boxes: a process per core, each image on one of them.

Processes are spawned, so nothing of the parent's threads is copied in an unknown state, and each leaves when
the parent is gone, also after SIGKILL, when the pool can no longer tell them. A bad image is a status, never
an exception.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from univip.data.decode import decode
from univip.errors import ImageError, UnivipError
from univip.proposals.filters import filter_boxes
from univip.proposals.search import prepare_engine, selective_search

if TYPE_CHECKING:
    from univip.types import Boxes


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

    reason: str  # empty, or one of `univip.data.decode.REASONS`
    raw: Boxes
    filtered: list[Boxes]  # one per minimum size
    seconds: float


def search_image(task: SearchTask, settings: SearchSettings) -> SearchResult:
    """Decode, search and filter one image."""
    start = time.perf_counter()
    try:
        image = decode(task.path, exif=settings.exif, max_pixels=settings.max_pixels, size=task.size)
    except ImageError as error:
        none = np.empty((0, 4), np.int32)
        return SearchResult(
            error.reason, none, [none for _ in settings.min_sizes], time.perf_counter() - start
        )
    raw = selective_search(image, mode=settings.mode, engine=settings.engine, key=task.image_id)
    # Here rather than at the merge, where it would wait for one core.
    filtered = [
        filter_boxes(raw, min_size_px=size, max_ratio=settings.max_ratio, max_iou=settings.max_iou)
        for size in settings.min_sizes
    ]
    return SearchResult("", raw, filtered, time.perf_counter() - start)


def search_images(
    tasks: Sequence[SearchTask], settings: SearchSettings, *, processes: int
) -> Generator[tuple[int, SearchResult]]:
    """Search all images, yielding (position in `tasks`, result) as they finish.

    Closing the generator ends the processes as soon as each has finished its image.

    Args:
        tasks: The images.
        settings: What is the same for all.
        processes: Number of processes; 0 = one per core this process may use.

    Raises:
        UnivipError: If a process dies.
    """
    processes = min(processes or len(os.sched_getaffinity(0)), len(tasks))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_start_process, initargs=(settings.engine,)
    )
    try:
        futures = {pool.submit(search_image, task, settings): position for position, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        unfinished = [futures[future] for future in futures if not future.done() or future.exception()]
        raise _process_died([tasks[position].path for position in unfinished[:processes]]) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process(engine: str) -> None:
    """One thread per process, signals left to the parent, no life after it, everything loaded."""
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGUSR2):  # Ctrl-C, and SLURM's warning before the time limit
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, daemon=True).start()
    prepare_engine(engine)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _process_died(suspects: list[Path]) -> UnivipError:
    """The pool does not say which image was on the process, only which had not finished."""
    return UnivipError(
        "a searching process died, killed for its memory or by a crash in compiled code.",
        where=f"one of {', '.join(map(str, suspects))}",
        fix="proposals.processes=N with fewer processes, or more memory; finished shards are kept",
    )
