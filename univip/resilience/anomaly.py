"""Capsules: what it takes to compute a bad step again.

    anomalies/000012345/capsule.json

A step is a function of the state before it, the plan and the ledger. So a capsule holds no tensors: it names
the checkpoint from which the step can be reached, and keeps that checkpoint from being deleted; how much of
the ledger there was; and the numbers that the step ended with, to compare. Non-finite numbers are strings
that `float` reads, because JSON has no others.

A capsule that cannot be written costs a capsule, never the run.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from univip.atomic import write_text
from univip.checkpoint import layout
from univip.errors import CheckpointError, ConfigError
from univip.observe import Observer
from univip.resilience.guard import Judgement

if TYPE_CHECKING:  # `univip show` lists capsules, and never loads torch
    from univip.checkpoint.manager import CheckpointManager

FOLDER = "anomalies"
FILE_NAME = "capsule.json"
VERSION = 1


@dataclass(frozen=True)
class Capsules:
    """The capsules of one run; rank 0 only.

    Attributes:
        directory: `anomalies/`, made with the first capsule.
        manager: Of the checkpoints; the one a capsule needs is pinned.
        observer: Told of every capsule, and of those that could not be written.
        limit: How many there may be.
        place: What every capsule says about where it was made: attempt, round, versions.
    """

    directory: Path
    manager: CheckpointManager
    observer: Observer
    limit: int
    place: dict[str, Any]

    def write(
        self, data_step: int, judgement: Judgement, *, ledger_records: int, facts: dict[str, Any]
    ) -> None:
        """Keep what is needed to compute one data step again.

        Args:
            data_step: Of the verdict.
            judgement: The verdict.
            ledger_records: Records of the ledger that ruled this step.
            facts: Numbers of the step, and of each rank.
        """
        name = f"{data_step:09d}"
        folder = self.directory / name
        try:
            if not folder.exists() and len(list(self.directory.glob("*"))) >= self.limit:
                outcome, what = "over_budget", f"there are {self.limit} already"
            else:
                # Before the trouble began: to see it arise, not only that it is there.
                begin = data_step - judgement.steps_before - (judgement.where == "state")
                start = self.manager.pin(max(begin, 0), name)
                document = {
                    "v": VERSION,
                    "time": time.time(),
                    **self.place,
                    "data_step": data_step,
                    **judgement._asdict(),
                    "start": {"data_step": start.data_step, "line": start.line},
                    "ledger_records": ledger_records,
                    **facts,
                }
                folder.mkdir(parents=True, exist_ok=True)
                write_text(folder / FILE_NAME, json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")
                outcome, what = "success", ""
        except (OSError, CheckpointError) as error:
            outcome, what = "failure", str(error)
        self.observer.record("capsule", data_step=data_step, capsule=name, outcome=outcome, what=what)


def read_capsule(run_dir: Path, name: str) -> dict[str, Any]:
    """One capsule of a run.

    Args:
        run_dir: The run directory.
        name: Of its folder, or its data step.

    Raises:
        ConfigError: If there is no such capsule, or another version wrote it.
    """
    folder = run_dir / FOLDER
    path = folder / (f"{int(name):09d}" if name.isdecimal() else name) / FILE_NAME
    known = sorted(each.name for each in folder.glob("*") if (each / FILE_NAME).exists())
    fix = f"univip replay {run_dir.name} {known[-1]}" if known else f"univip show {run_dir.name}"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["v"] != VERSION:
            raise ValueError(f"version {document['v']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the anomaly must be one of the run's {len(known)}, but `{name}` cannot be read: {error}.",
            where=str(path),
            fix=fix,
        ) from error
    return dict(document)


def find_start(checkpoints: Path, start: dict[str, int]) -> Path:
    """The checkpoint that a capsule starts from, be it abandoned since.

    Raises:
        CheckpointError: If it is gone, or no longer what was written.
    """
    name = layout.name_of(start["data_step"])
    for path in [checkpoints / name, *sorted((checkpoints / layout.ABANDONED).glob(f"*/{name}*"))]:
        if path.is_dir() and layout.read_manifest(path).line == start["line"]:
            layout.verify(path)
            return path
    raise CheckpointError(
        f"the checkpoint `{name}` that the capsule starts from is gone",
        where=str(checkpoints),
        fix="restore it from a backup",
    )


def _plain(value: Any) -> Any:
    """The value with strings in place of non-finite numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
