"""The ledger: the few facts that steer a run, never lossy, never rewound.

Training state goes back at a rollback; the ledger does not. Each record is fsynced before the act it
announces, so a run killed between the two finds the decision at its next start and carries it out. Only rank
0 of the owning attempt writes, and its agent while no rank runs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from univip.atomic import sync
from univip.errors import DataError


@dataclass(frozen=True)
class Rollback:
    """One decision to go back.

    Attributes:
        target: Data step of the checkpoint returned to.
        at: Data step after which the state was found bad.
        window: Data steps [start, stop) that will not be trained on.
        calm_steps: Data steps after the target that are computed calmly.
    """

    target: int
    at: int
    window: tuple[int, int]
    calm_steps: int = 0


@dataclass
class Decisions:
    """The ledger as the trainer needs it."""

    skipped: set[int] = field(default_factory=set)  # data steps whose batch changed nothing
    rollbacks: list[Rollback] = field(default_factory=list)
    cadence: tuple[int, int] | None = None  # of checkpoints, if chosen: from where on, interval

    @property
    def line(self) -> int:
        """How often the run turned back; checkpoints carry it."""
        return len(self.rollbacks)

    @property
    def windows(self) -> set[int]:
        """Data steps that rollbacks jump over."""
        return {step for rollback in self.rollbacks for step in range(*rollback.window)}

    @property
    def calm(self) -> list[tuple[int, int]]:
        """Stretches [start, stop) of data steps to be computed calmly."""
        return [(each.target, each.target + each.calm_steps) for each in self.rollbacks if each.calm_steps]

    def abandoned(self, checkpoints: dict[int, int]) -> list[int]:
        """Checkpoints of futures the run turned away from.

        Args:
            checkpoints: Data step to the `line` of its manifest.

        Returns:
            Data steps of those written before a rollback whose target lies before them.
        """
        return [
            data_step
            for data_step, line in checkpoints.items()
            if any(
                number >= line and data_step > rollback.target
                for number, rollback in enumerate(self.rollbacks)
            )
        ]


class Ledger:
    """`ledger.jsonl` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: str, **fields: Any) -> None:
        """Write one record and wait until it is on the disk."""
        record = {"v": 1, "kind": kind, "time": time.time(), **fields}
        line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                # A record cut off by a crash announces an act that never happened: its line is closed and
                # stays unreadable.
                line = "\n" + line
            if not size:
                sync(self.path.parent)  # where the name of a new file is
            data = line.encode()
            while data:  # a disk that is nearly full takes a part
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole record in order.

        Raises:
            DataError: If a line in the middle is damaged other than by being cut off.
        """
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.split("\n"), start=1):
            if not line:
                continue
            try:
                record = json.loads(line)
            except ValueError:
                if not line.endswith("}"):
                    continue  # cut off by a crash; after a power cut it may be zeros
                raise DataError(
                    "a record of the ledger cannot be read",
                    where=f"{self.path}, line {number}",
                    fix="restore the file from a backup, or remove that line after reading it",
                ) from None
            yield record

    def decisions(self, records: int | None = None) -> Decisions:
        """What the records mean for training; or the first ones, as they once were all."""
        decisions = Decisions()
        for record in islice(self.read(), records):
            if record["kind"] == "skip":
                decisions.skipped.add(record["data_step"])
            elif record["kind"] == "cadence":
                decisions.cadence = (record["data_step"], record["every_steps"])
            elif record["kind"] == "rollback":
                start, stop = record["window"]
                decisions.rollbacks.append(
                    Rollback(record["target"], record["at"], (start, stop), record.get("calm_steps", 0))
                )
        return decisions
