"""Errors of the command line, one class per exit code.

UnivipError
  + RunNotFoundError          3
  + SlurmUnavailableError     4
  + RefusedError              5   would change, destroy or double something
(`ConfigError` ends with 2, every other one with 1)
"""

from __future__ import annotations

from jobs.attempts import RunBusyError
from univip.errors import ConfigError, UnivipError

OK, FAILED, USAGE, NOT_FOUND, NO_SLURM, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


class RunNotFoundError(UnivipError):
    """No run, or more than one, has this name."""


class SlurmUnavailableError(UnivipError):
    """A SLURM command is missing or did not answer."""


class RefusedError(UnivipError):
    """What was asked would change, destroy or double something."""


def exit_code(error: UnivipError) -> int:
    """Exit status of a command that ends with `error`."""
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, RunNotFoundError):
        return NOT_FOUND
    if isinstance(error, SlurmUnavailableError):
        return NO_SLURM
    if isinstance(error, RefusedError | RunBusyError):
        return REFUSED
    return FAILED
