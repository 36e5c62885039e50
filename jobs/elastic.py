"""torch's elastic agent, with less patience.

It gives the workers that are left of a broken round 30 s to end after SIGTERM. Ours end within milliseconds;
one that does not is stopped or hangs in native code, and has nothing to save.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.process import BaseProcess
from threading import Timer

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

_LAST_WORDS_S = 3  # a worker needs the interpreter for a moment, on a machine that may be busy


class ElasticAgent(LocalElasticAgent):
    """Starts and watches the workers of one node for one round."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec, DefaultLogsSpecs(), start_method="forkserver", shutdown_timeout=_LAST_WORDS_S)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        pids = {worker.id for worker in worker_group.workers}
        left = [process for process in multiprocessing.active_children() if process.pid in pids]
        if len(left) == len(pids):
            return super()._monitor_workers(worker_group)  # type: ignore[no-any-return]
        # What follows waits for those that are left, for as long as torch thinks right.
        timer = Timer(_LAST_WORDS_S, _kill, [left])
        timer.start()
        try:
            return super()._monitor_workers(worker_group)  # type: ignore[no-any-return]
        finally:
            timer.cancel()


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
