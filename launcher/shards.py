"""How far the shards of a run are, without opening a file of each that is finished.

A finished shard has a report in `shards/`; which images it holds stands in the report of the index. So an
array of ten thousand shards is counted by listing one folder, and only what still runs is read.
"""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from jobs.attempts import Attempt
from jobs.config import INDEX_REPORT
from jobs.outcomes import read_json
from monitoring.journal import FOLDER as JOURNAL
from monitoring.journal import Record
from univip.proposals.cut import FOLDER, shard_file

_REPORT = re.compile(r"shard-(\d+)\.json")
_SHARD_JOURNAL = re.compile(r".*-shard(\d+)\.jsonl")
_NEWEST = 50  # journals that are read although their shard is finished: they may tell of bad images
_WINDOW_S = 600.0  # that a rate is taken over
_SAMPLED = 50  # reports that tell how long a shard takes
_LEAST_FINISHED = 3
SLOW = 3.0  # times the median, and a shard is a straggler
_LEAST_SLOW_S = 60.0


@dataclass(frozen=True)
class Straggler:
    """A shard that began long ago, for what others took: it is slow, or its task died on another machine."""

    shard: int
    seconds: float
    median_s: float

    def words(self) -> str:
        """As a person is told."""
        took, usual = (f"{seconds / 60:,.1f} min" for seconds in (self.seconds, self.median_s))
        return f"shard {self.shard} began {took} ago and is not done, others took {usual}"


@dataclass(frozen=True)
class ShardProgress:
    """What is done of a search.

    Attributes:
        rate: Images per second of the last minutes; None if unknown.
    """

    images_done: int
    num_images: int
    finished: int
    num_shards: int
    rate: float | None
    stragglers: list[Straggler] = field(default_factory=list)


def finished_shards(run_dir: Path) -> set[int]:
    """Numbers of the shards that have a report."""
    try:
        names = [path.name for path in (run_dir / FOLDER).iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {int(match[1]) for name in names if (match := _REPORT.fullmatch(name))}


def journals(run_dir: Path, finished: set[int]) -> list[Path]:
    """Journal files of a run worth reading, in order of attempts."""
    names = sorted(path.name for path in (run_dir / JOURNAL).glob("*.jsonl"))
    old = names[: -_NEWEST or None]
    over = {name for name in old if (match := _SHARD_JOURNAL.fullmatch(name)) and int(match[1]) in finished}
    return [run_dir / JOURNAL / name for name in names if name not in over]


def shard_progress(
    run_dir: Path, finished: set[int], records: list[Record], attempts: list[Attempt]
) -> ShardProgress | None:
    """Look at a run that makes boxes; None if nothing was searched yet.

    Args:
        run_dir: The run directory.
        finished: Of `finished_shards`.
        records: What the newest ones of `journals` tell of shards, by time.
        attempts: Of the run.
    """
    borders: list[int] = (read_json(run_dir / INDEX_REPORT) or {}).get("shards") or []
    newest = {record["shard"]: record for record in records if record["kind"] == "proposals"}
    if not borders or not (finished or newest):
        return None
    sizes = [stop - start for start, stop in pairwise(borders)]
    done = sum(size for shard, size in enumerate(sizes) if shard in finished)
    done += sum(record["images_done"] for shard, record in newest.items() if shard not in finished)
    slow = _stragglers(run_dir, finished, records, attempts)
    return ShardProgress(done, borders[-1], len(finished), len(sizes), _rate(records), slow)


def _rate(records: list[Record]) -> float | None:
    """Images per second: what all shards grew by in the last minutes of the journal."""
    points: dict[int, list[tuple[float, int]]] = {}
    for record in records:
        if record["kind"] == "proposals" or (record["kind"] == "shard" and record["state"] == "running"):
            point = float(record["time"]), int(record.get("images_done", 0))
            points.setdefault(record["shard"], []).append(point)
    last = max((at for found in points.values() for at, _ in found), default=0.0)
    recent = [[point for point in found if point[0] >= last - _WINDOW_S] for found in points.values()]
    first = min((found[0][0] for found in recent if found), default=last)
    grown = sum(max(0, found[-1][1] - found[0][1]) for found in recent if found)
    return grown / (last - first) if last > first else None


def _stragglers(
    run_dir: Path, finished: set[int], records: list[Record], attempts: list[Attempt]
) -> list[Straggler]:
    """Shards that run now and have run for long, the slowest first."""
    if len(finished) < _LEAST_FINISHED:
        return []
    started: dict[int, float] = {}
    for attempt in attempts:
        if attempt.stage.startswith("shard") and attempt.ended is None and attempt.is_alive():
            number = attempt.stage.partition(":")[2]
            if number.isdigit():
                started[int(number)] = attempt.started
                continue
            # One shard after the other (`shards`, or `shard:N/S`): it is at the one that it told of last.
            begun = [
                each
                for each in records
                if each["kind"] == "shard" and each["state"] == "running"
                if each["attempt"] == attempt.number
            ]
            started |= {each["shard"]: float(each["time"]) for each in begun[-1:]}
    running = {shard: since for shard, since in started.items() if shard not in finished}
    if not running:
        return []
    step = max(1, len(finished) // _SAMPLED)
    reports = [run_dir / FOLDER / shard_file(shard) for shard in sorted(finished)[::step]]
    took = [report["seconds"] for path in reports if (report := read_json(path.with_suffix(".json")))]
    median_s = statistics.median(took) if took else 0.0
    looked_at = [Straggler(shard, time.time() - since, median_s) for shard, since in running.items()]
    slow = [each for each in looked_at if each.seconds > max(_LEAST_SLOW_S, SLOW * median_s)]
    return sorted(slow, key=lambda each: -each.seconds)
