"""One rank's micro-batches, data step after data step, in this process or prefetched by workers.

The unit of work is a data step and everything about it is keyed, so a worker needs no state: which worker
makes a data step, how many there are and where reading began do not show in the result.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from univip.data.batch import HostBatch
from univip.data.plan import SamplePlan, micro_batches
from univip.data.samples import SampleReader
from univip.errors import UnivipError

_Item = tuple[int, list[HostBatch] | UnivipError]  # data step, and what came of it


@dataclass(frozen=True)
class BatchSource:
    """What one rank reads."""

    reader: SampleReader
    global_batch: int
    rank: int
    world_size: int
    max_images_per_rank: int

    def read(self, data_step: int) -> list[HostBatch]:
        """This rank's micro-batches of one data step."""
        plan = SamplePlan(len(self.reader.index), self.global_batch, self.reader.seed)
        epochs, rows = plan.batch(data_step)
        cuts = micro_batches(self.global_batch, self.world_size, self.max_images_per_rank)
        return [self.reader.batch(epochs[start:stop], rows[start:stop]) for start, stop in cuts[self.rank]]


def open_batches(
    source: BatchSource, data_steps: Iterable[int], *, workers: int
) -> Generator[tuple[int, list[HostBatch]], None, None]:
    """Yield (data step, micro-batches) in the order asked for. Closing the generator stops its workers.

    Args:
        source: What to read.
        data_steps: Positions in the plan; read a few ahead of what is yielded.
        workers: Processes that read; 0 reads in this one.

    Raises:
        UnivipError: Whatever went wrong in a worker, with its three lines.
    """
    if workers == 0:
        for data_step in data_steps:
            yield data_step, source.read(data_step)
        return

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # so that workers are forked with torch already imported
    loader = DataLoader(
        _DataSteps(source),
        batch_size=None,
        sampler=data_steps,
        collate_fn=_unchanged,
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=_start_worker,
        # The loader draws seeds for its workers, unused here: not from the global generator.
        generator=torch.Generator(),
    )
    for data_step, result in loader:
        if isinstance(result, UnivipError):
            raise result
        yield data_step, result


class _DataSteps(Dataset[_Item]):
    """Data steps by position."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source

    def __getitem__(self, data_step: int) -> _Item:
        try:
            return data_step, self._source.read(data_step)
        except UnivipError as error:
            return data_step, error  # raised in here, it would arrive as a copy without its three lines


def _unchanged(item: Any) -> Any:
    """The loader's own collation would turn arrays into tensors."""
    return item


def _start_worker(_number: int) -> None:
    """Leave signals to the training process, and go when it goes.

    A scheduler warns every process of a job, but the last step and its checkpoint need the workers.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # The loader's own watch is for the parent in the process table. That is the fork server, which lives on
    # as long as its children do.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
