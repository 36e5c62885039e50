"""Starts the local supervisor of a run and leaves it behind: `python -m launcher.detach RUN_DIR`.

submitit's local executor starts its controller in the session of whoever submits, where Ctrl-C and a closed
terminal reach it. Submitting from this process, which has a session of its own and ends at once, keeps the
supervisor out of their way.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from pathlib import Path

from jobs.requests import VISIBLE_GPUS

_TEN_YEARS_MIN = 10 * 365 * 24 * 60  # submitit wants a time limit; the stages have none


def main(run_dir: str) -> None:
    """Submit the supervisor."""
    import submitit

    # submitit hides every GPU from a local job; the supervisor undoes that for its stages.
    os.environ[VISIBLE_GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    executor = submitit.LocalExecutor(Path(run_dir) / "submitit")
    executor.update_parameters(timeout_min=_TEN_YEARS_MIN, stderr_to_stdout=True)
    executor.submit(pkgutil.resolve_name("jobs.base:run_job"), "local", run_dir)


if __name__ == "__main__":
    main(sys.argv[1])
