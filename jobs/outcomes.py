"""How a process of a job ended: exit codes, causes, and the small JSON files that carry them.

An exit code decides what happens next (requeue, ask a person, stop); a cause says why, in words of a closed
set, because it is also a metric label. Both are written by the process itself where it can, and derived from
the exit status where it cannot. Torch-free: the command line and the local supervisor read the same files.
"""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

from univip.atomic import write_text
from univip.errors import ConfigError, DataError, PreflightError, RollbackExhaustedError, UnivipError


class ExitCode(IntEnum):
    """What the parent of a worker or stage is to do."""

    DONE = 0
    CRASH = 1  # and every other number: a new round, on a budget
    BUSY = 5  # another process owns the run
    REQUEUE = 75
    EXHAUSTED = 76  # a budget is spent: a person must look
    REFUSED = 77  # configuration or data is wrong; never retried


class Cause(StrEnum):
    """Why an attempt, round or stage ended; the closed set of the metric label `cause`."""

    DONE = "done"
    STOPPED = "stopped"  # asked to, by a signal; the state is saved
    CANCELLED = "cancelled"
    PREEMPTION = "preemption"
    TIME_LIMIT = "time_limit"
    NODE_FAILURE = "node_failure"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED = "killed"  # by a signal nobody here sent, most often SIGKILL
    LOST_PEER = "lost_peer"  # another rank went away first, and left no word
    HANG = "hang"
    CRASH = "crash"
    NONFINITE = "nonfinite"
    FULL_DISK = "full_disk"
    REFUSED = "refused"  # configuration or data
    BUSY = "busy"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Outcome:
    """How one process ended: what to do next, why, and in words."""

    exit_code: int
    cause: Cause = Cause.DONE
    message: str = ""

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """The outcome of a process that ends with `error`."""
        message = str(error) if isinstance(error, UnivipError) else f"{type(error).__name__}: {error}"
        if isinstance(error, ConfigError | DataError):
            return cls(ExitCode.REFUSED, Cause.REFUSED, message)
        if isinstance(error, RollbackExhaustedError):
            return cls(ExitCode.EXHAUSTED, Cause.NONFINITE, message)
        if isinstance(error, PreflightError):
            return cls(ExitCode.CRASH, Cause.NODE_FAILURE, message)
        if isinstance(error, MemoryError):
            return cls(ExitCode.CRASH, Cause.OUT_OF_MEMORY, message)
        if _is_full_disk(error):
            return cls(ExitCode.CRASH, Cause.FULL_DISK, message)
        return cls(ExitCode.CRASH, Cause.CRASH, message)

    @classmethod
    def of_exit(cls, exit_code: int) -> Outcome:
        """All that an exit status tells; negative numbers are signals, as `subprocess` gives them."""
        if exit_code < 0:
            return cls(ExitCode.CRASH, Cause.KILLED, f"killed by signal {-exit_code}")
        return cls(exit_code, _CAUSE_OF_CODE.get(exit_code, Cause.CRASH))

    def save(self, path: Path) -> None:
        """Write the outcome file, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Outcome | None:
        """An outcome file, or None where there is none."""
        document = read_json(path)
        if document is None:
            return None
        return cls(int(document["exit_code"]), Cause(document["cause"]), str(document["message"]))


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk is the error, or what it came from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


_CAUSE_OF_CODE: dict[int, Cause] = {
    ExitCode.DONE: Cause.DONE,
    ExitCode.BUSY: Cause.BUSY,
    ExitCode.REQUEUE: Cause.STOPPED,
    ExitCode.EXHAUSTED: Cause.NONFINITE,
    ExitCode.REFUSED: Cause.REFUSED,
}


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file so that every reader, also after a power cut, sees the old or the new one, whole."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is absent or is no JSON object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return document if isinstance(document, dict) else None
