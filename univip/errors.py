"""Errors a caller can act on, one class per decision.

    UnivipError
      + ConfigError              the request is wrong: change it, retrying cannot help
      + DataError                the photographs or annotations are wrong: change them, retrying cannot help
      |   + ImageError           one image cannot be used; the run goes on without it
      + CheckpointError          a checkpoint is missing or damaged
      + PreflightError           a question with a known answer was answered wrongly: not the run's fault
      + RollbackExhaustedError   the rollback budget is spent: a person must look

Every error is three lines: what is wrong, where, and the command or change that fixes it.
"""

from __future__ import annotations

import re


class UnivipError(Exception):
    """What, where, fix: printed as three lines, without a traceback."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """The three lines, leaving out the ones that have nothing to say."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(map(printable, lines))


def printable(text: str) -> str:
    """Text as one line that does nothing to a terminal: a name of a file, say, may hold anything."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def override(key: str, value: object) -> str:
    """`key=value` for the fix of an error, in quotes where a shell or Hydra would need them."""
    text = str(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./:-]+", text, re.ASCII) else f"\"{key}='{text}'\""


class ConfigError(UnivipError):
    """The request cannot be carried out as it stands."""


class DataError(UnivipError):
    """The photographs, annotations or proposals are not what the run needs."""


class ImageError(DataError):
    """One image cannot be used; callers count it by `reason` and go on.

    Attributes:
        reason: One of `univip.data.decode.REASONS`; a metric label.
    """

    def __init__(self, reason: str, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, fix=fix)
        self.args = (reason, what)  # what pickling hands to this constructor in another process
        self.reason = reason


class CheckpointError(UnivipError):
    """A checkpoint is missing, damaged or not of this run."""


class PreflightError(UnivipError):
    """A processor, memory or network that training would rest on is not sound."""


class RollbackExhaustedError(UnivipError):
    """Training went back as often as the budget allows and still met bad values."""
