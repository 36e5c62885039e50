"""Starts Python with SLURM's signals blocked: one that comes while modules load waits for its answer.

Unanswered, SIGUSR2 ends a process, and a job that is preempted in its first second would have failed. Run by
path and without site packages, so that this takes milliseconds; `jobs.base` takes the block away. The Python
that follows takes its packages from where this file lies, which is the run's own copy of the code.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    code = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - no pathlib yet
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
