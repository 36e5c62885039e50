"""A training job as the processes it really is, to be killed.

Each runs in a session of its own, so that nothing of it outlives a trial, and what is killed can be found.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from monitoring import journal
from univip.checkpoint import layout
from univip.errors import UnivipError
from univip.resilience import faults

_TIMEOUT_S = 240.0  # of one wait; a whole attempt takes 15 s on an idle machine
_POLL_S = 0.01


class Job:
    """`python -m jobs.base train RUN_DIR`, all of its processes; they end with the `with` block.

    Args:
        run_dir: The run.
        plant: Planted faults.
    """

    def __init__(self, run_dir: Path, *, plant: str = "") -> None:
        self.run_dir = run_dir
        self._log = run_dir / f"drill-{time.monotonic_ns()}.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.base", "train", str(run_dir)],
                env={**os.environ, faults.VARIABLE: plant},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def agent(self) -> int:
        """Process id of the agent, which the session is named after."""
        return self._process.pid

    def is_over(self) -> bool:
        """Whether the agent has ended."""
        return self._process.poll() is not None

    def processes(self) -> list[int]:
        """Living processes, the agent included."""
        return [pid for pid, session in _sessions() if session == self._process.pid]

    def ranks(self) -> dict[int, int]:
        """Process id of every living rank, known by the log it writes to."""
        ranks: dict[int, int] = {}
        for pid in self.processes():
            try:
                log = str(Path(f"/proc/{pid}/fd/1").readlink())
            except OSError:  # ended in between
                continue
            if match := re.fullmatch(rf"{re.escape(str(self.run_dir))}/.*/rank-(\d+)\.log", log):
                ranks.setdefault(int(match[1]), pid)
        return ranks

    def readers(self) -> list[int]:
        """Processes that read photographs, oldest first, after the servers that fork them."""
        return sorted(pid for pid in self.processes() if "univip.data.loader" in _command(pid))

    def until(self, condition: Callable[[], Any], what: str, *, poll_s: float = _POLL_S) -> Any:
        """The first true value of `condition`, or None once the job is over.

        Raises:
            UnivipError: If that takes too long.
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while not (value := condition()):
            if self.is_over():
                return None
            if time.monotonic() > deadline:
                raise UnivipError(f"waited {_TIMEOUT_S:.0f} s for {what}", where=str(self._log))
            time.sleep(poll_s)
        return value

    def wait(self) -> int:
        """The exit code of the agent, once all processes are gone.

        Raises:
            UnivipError: If that takes too long.
        """
        try:
            code = self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise UnivipError(f"the job did not end in {_TIMEOUT_S:.0f} s", where=str(self._log)) from None
        deadline = time.monotonic() + _TIMEOUT_S
        while self.processes():
            if time.monotonic() > deadline:
                raise UnivipError("processes outlived their agent", where=str(self._log))
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        """SIGKILL of everything at once."""
        while self.processes():
            os.killpg(self._process.pid, signal.SIGKILL)
            time.sleep(_POLL_S)
        self._process.wait()


def records(run_dir: Path) -> list[dict[str, Any]]:
    """The journal of a run."""
    return list(journal.read(run_dir))


def reached(run_dir: Path) -> int:
    """The greatest data step that the journal tells of."""
    return max((each["data_step"] for each in records(run_dir) if each["kind"] == "step"), default=0)


def newest_checkpoint(run_dir: Path) -> int:
    """Data step of the newest checkpoint, -1 if there is none."""
    return max(layout.data_steps(run_dir / "checkpoints"), default=-1)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:  # ended in between
        return ""


def _sessions() -> Iterator[tuple[int, int]]:
    """Process id and session of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # ended in between
            continue
        if fields[0] != "Z":
            yield int(entry.name), int(fields[3])
