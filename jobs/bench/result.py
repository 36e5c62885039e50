"""What every benchmark says, and the one core it is measured on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict

import torch


class Result(TypedDict):
    """One line of `univip bench NAME --json`."""

    name: str
    value: float
    unit: str
    reference: float
    reference_name: str
    ratio: float  # value / reference
    better: str  # higher | lower
    details: dict[str, Any]


@contextmanager
def one_core() -> Iterator[None]:
    """Hold this process on one core with one computing thread; threads that already exist are moved too."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    _move_to({max(cores)})  # the first one of a machine usually serves its devices
    torch.set_num_threads(1)  # Pillow and NumPy's elementwise operations have no threads
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _move_to(cores)


def _move_to(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread.name), cores)
