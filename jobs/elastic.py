"""torch's elastic agent, with less patience.

It gives the workers that are left of a broken round 30 s to end after SIGTERM. Ours end within milliseconds;
one that does not is stopped or hangs in native code, and has nothing to save.
"""

from __future__ import annotations

import signal
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

_LAST_WORDS_S = 3  # a worker needs the interpreter for a moment, on a machine that may be busy


class ElasticAgent(LocalElasticAgent):
    """Starts and watches the workers of one node for one round."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids: dict[int, Any] = super()._start_workers(worker_group)
        assert self._pcontext is not None
        close = self._pcontext.close

        def close_soon(death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
            close(death_sig, _LAST_WORDS_S)

        self._pcontext.close = close_soon  # type: ignore[method-assign]  # torch has no option for it
        return pids
