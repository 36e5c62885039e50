"""The loss of a run at a glance: a few values from along its journal, without reading the rest of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from monitoring.lines import FOLDER, MAX_LINE_BYTES
from monitoring.web.history import finite

POINTS = 40
_PIECE_BYTES = 4_096  # a step record has about 1,200
_GREW = 1.02  # looked at again once the files are this much larger


class Sparks:
    """Remembers what it read of each run until the run has grown."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, list[tuple[float, float | None]]]] = {}

    def of(self, run_dir: Path) -> list[tuple[float, float | None]]:
        """Pairs of data step and loss, in the order of writing; null for a loss that is not finite."""
        try:
            files = sorted((run_dir / FOLDER).glob("*-rank0000.jsonl"))
            sizes = [path.stat().st_size for path in files]
        except OSError:
            return []
        total = sum(sizes)
        known = self._known.get(run_dir)
        if known is None or not known[0] <= total <= known[0] * _GREW:
            known = (total, _line(_sample(files, sizes)))
            self._known[run_dir] = known
        return known[1]


def _sample(files: list[Path], sizes: list[int]) -> list[tuple[float, float | None]]:
    found: list[tuple[float, float | None]] = []
    step_bytes = max(1, sum(sizes) // POINTS)
    passed = 0
    for path, size in zip(files, sizes, strict=True):
        # The same share of places falls into each file as it has of the bytes, and its end always counts.
        places = [
            *range(-passed % step_bytes, max(0, size - _PIECE_BYTES), step_bytes),
            max(0, size - _PIECE_BYTES),
        ]
        passed += size
        try:
            with path.open("rb") as file:
                for place in places:
                    found += _first_step(
                        os.pread(file.fileno(), _PIECE_BYTES, place), last=place == places[-1]
                    )
        except OSError:
            continue
    return found


def _line(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The points that no later one supersedes: where a run went back, only what it did then."""
    line: list[tuple[float, float | None]] = []
    for point in reversed(points):
        if not line or point[0] < line[-1][0]:
            line.append(point)
    return line[::-1]


def _first_step(piece: bytes, *, last: bool) -> list[tuple[float, float | None]]:
    """Data step and loss of the first whole step record of a piece, or of its last one."""
    lines = piece.split(b"\n")
    for line in reversed(lines) if last else lines[1:]:
        if b'"kind": "step"' not in line or len(line) > MAX_LINE_BYTES:
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and (data_step := finite(record.get("data_step"))) is not None:
            return [(data_step, finite(record.get("loss")))]
    return []
