"""How far a run is, from the ends of its journal files: a few kilobytes per run, however long it is.

A run that was started again and again leaves a file for each rank of each attempt, and only the newest ones
grow. So what the end of a file tells is kept until the file changes: whoever watches reads what is new.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.attempts import read_attempts
from jobs.outcomes import read_json
from launcher.events import is_problem, problem_in_words
from launcher.shards import ShardProgress, Straggler, finished_shards, journals, shard_progress
from launcher.states import RunState, State, read_state
from monitoring.journal import Record, tail_records


@dataclass
class Summary:
    """One run at a glance; None where nothing is known yet.

    Attributes:
        done: Data steps, or images searched while boxes are made.
        target: What `done` will be at the end.
        shards_done: While boxes are made.
        num_shards: All of them.
        stragglers: Shards that run far longer than the others took.
        rate: Images per second, of the last minutes; None of what does not run.
        last_rate: The same of what runs no more, when it did.
        mean_rate: Images per second of training, over the whole run.
        eta_s: Seconds until this stage is done.
        counts: Samples so far by what became of them; see the kind `step` of the journal.
        results: What an evaluation has found of the trained network, by metric; empty before the first.
        problem: Why it failed, else the newest thing that went wrong and was survived, in words.
    """

    id: str
    state: RunState
    done: int | None = None
    target: int | None = None
    shards_done: int | None = None
    num_shards: int | None = None
    stragglers: list[Straggler] = field(default_factory=list)
    rate: float | None = None
    last_rate: float | None = None
    mean_rate: float | None = None
    loss: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    eta_s: float | None = None
    counts: dict[str, float] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return {
            "run": self.id,
            "state": str(self.state.state),
            "stage": self.state.stage,
            "cause": self.state.cause,
            "attempt": self.state.attempt,
            "done": self.done,
            "target": self.target,
            "shards_done": self.shards_done,
            "shards": self.num_shards,
            "stragglers": [asdict(each) for each in self.stragglers],
            "images_per_s": self.rate,
            "loss": self.loss,
            "terms": self.terms,
            "eta_s": self.eta_s,
            "counts": self.counts,
            "results": self.results,
            "problem": self.problem,
        }


def summarise(run_dir: Path, state: RunState | None = None) -> Summary:
    """Look at one run.

    Args:
        run_dir: The run directory.
        state: Its state, if known already.
    """
    summary = Summary(run_dir.name, state or read_state(run_dir))
    finished = finished_shards(run_dir)
    ends = _ends_of(run_dir, finished)
    if training := [end.training for end in ends if end.training]:
        _add_training(summary, training[-1])
    else:
        searched = sorted((record for end in ends for record in end.searched), key=_time)
        _add_proposals(summary, shard_progress(run_dir, finished, searched, read_attempts(run_dir)))
    summary.results = (read_json(run_dir / "results" / "evaluate.json") or {}).get("trained", {})
    problem = _newest([end.problem for end in ends if end.problem])
    if summary.state.state is State.failed and summary.state.message:
        summary.problem = summary.state.message.splitlines()[0]
    elif problem:
        summary.problem = problem_in_words(problem)
    elif summary.stragglers:
        summary.problem = summary.stragglers[0].words()
    summary.last_rate = summary.rate
    if summary.state.state is not State.running or summary.state.stage == "evaluate":
        summary.rate = summary.eta_s = None
    return summary


def progress_of(name: str, steps: list[Record]) -> Summary:
    """How far a run was at the last of some `step` records that follow each other in one file."""
    summary = Summary(name, RunState(State.running, "train", attempt=steps[-1]["attempt"]))
    _add_training(summary, _training(steps))
    return summary


@dataclass(frozen=True)
class _Training:
    """The newest step in a file of rank 0, and how fast those before it followed each other."""

    last: Record
    images_per_s: float | None
    steps_per_s: float | None


@dataclass(frozen=True)
class _End:
    """What the end of one journal file tells.

    Attributes:
        training: None where it has no step of rank 0.
        searched: All that tells of shards.
        problem: The newest one.
    """

    training: _Training | None
    searched: list[Record]
    problem: Record | None


_Stamp = tuple[int, int, int]
# By run and name: inode, size and time of a file, and its end. Of files that are looked at no more nothing.
_known: dict[Path, dict[str, tuple[_Stamp, _End]]] = {}


def _ends_of(run_dir: Path, finished: set[int]) -> list[_End]:
    """The ends of the journal files worth reading, in order of attempts; only changed ones are read again."""
    before = _known.get(run_dir, {})
    now: dict[str, tuple[_Stamp, _End]] = {}
    for path in journals(run_dir, finished):
        status = path.stat()
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        known = before.get(path.name)
        now[path.name] = known if known and known[0] == stamp else (stamp, _read_end(path))
    _known[run_dir] = now
    return [end for _, end in now.values()]


def _read_end(path: Path) -> _End:
    records = tail_records(path)
    training = None
    if path.name.endswith("-rank0000.jsonl"):
        # Rates are taken within one file: between two attempts nobody worked.
        steps = [record for record in records if record["kind"] == "step"]
        training = _training(steps) if steps else None
    searched = [record for record in records if record["kind"] in ("proposals", "shard")]
    return _End(training, searched, _newest([record for record in records if is_problem(record)]))


def _training(steps: list[Record]) -> _Training:
    rates = list(_rates(steps, "images"))
    pace = [steps_per_s for steps_per_s in _rates(steps, "data_step") if steps_per_s > 0]
    return _Training(
        steps[-1],
        statistics.median(rates) if rates else None,
        statistics.median(pace) if pace else None,
    )


def _newest(records: list[Record]) -> Record | None:
    """By time; of equals the last."""
    return max(reversed(records), key=_time, default=None)


def _time(record: Record) -> float:
    return float(record["time"])


def _add_training(summary: Summary, training: _Training) -> None:
    last = training.last
    summary.done, summary.target = last["data_step"], last.get("target")
    summary.counts = last.get("counts", {})
    summary.loss, summary.terms = last.get("loss"), last.get("terms", {})
    summary.rate = training.images_per_s
    if last.get("seconds"):
        summary.mean_rate = last["images"] / last["seconds"]
    if training.steps_per_s and summary.target is not None:
        summary.eta_s = max(0, summary.target - last["data_step"]) / training.steps_per_s


def _add_proposals(summary: Summary, progress: ShardProgress | None) -> None:
    if progress is None:
        return
    summary.done, summary.target = progress.images_done, progress.num_images
    summary.shards_done, summary.num_shards = progress.finished, progress.num_shards
    summary.stragglers, summary.rate = progress.stragglers, progress.rate
    if progress.rate:
        summary.eta_s = (progress.num_images - progress.images_done) / progress.rate


def _rates(records: list[Record], name: str) -> Iterable[float]:
    """Growth per second of a counter between neighbouring records; a rollback's step back is left out."""
    for before, after in pairwise(records):
        seconds, growth = after["time"] - before["time"], after[name] - before[name]
        if seconds > 0 and growth >= 0:
            yield growth / seconds
