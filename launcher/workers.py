"""Which workers an attempt has, or had last: from the first records of the files of their newest round."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from monitoring.journal import FOLDER
from monitoring.lines import MAX_LINE_BYTES, Record, decode

_NAME = re.compile(r"\d+\.(\d+)-rank(\d+)\.jsonl")


@dataclass(frozen=True)
class Workers:
    """One round of an attempt.

    Attributes:
        count: Ranks.
        hosts: Where those are that have begun, in order of ranks.
    """

    count: int
    hosts: list[str]


def newest_round(run_dir: Path, attempt: int) -> Workers | None:
    """The workers of the newest round whose rank 0 has begun; None before that, and for other stages."""
    found: dict[int, dict[int, Path]] = {}
    for path in (run_dir / FOLDER).glob(f"{attempt:04d}.*-rank*.jsonl"):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    for _, ranks in sorted(found.items(), reverse=True):
        begun = {rank: record for rank, path in sorted(ranks.items()) if (record := _beginning(path))}
        if 0 in begun:
            return Workers(
                begun[0]["world_size"], list(dict.fromkeys(each["host"] for each in begun.values()))
            )
    return None


def _beginning(path: Path) -> Record | None:
    """The `round` record of a file: its first one, or behind the totals of the files before it."""
    with path.open("rb") as file:
        lines = file.read(2 * MAX_LINE_BYTES).split(b"\n")[:-1]
    return next((each for line in lines if (each := decode(line)) and each["kind"] == "round"), None)
