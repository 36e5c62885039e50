"""Work that its time limit ends again and again with nothing won is not begun anew; a person is told.

A training goes on from its newest checkpoint, and an element of a long array from the shards that it has
finished. Every other stage begins from nothing, and so does a training that cannot save its state in time:
what the limit has ended twice in a row, it would end for ever. Preemption tells nothing: it may come early.
"""

from __future__ import annotations

from pathlib import Path

from jobs.attempts import Attempt, read_attempts
from jobs.config import load
from jobs.demand import asked_by, key_of
from jobs.outcomes import Cause, ExitCode, Outcome
from univip.checkpoint import layout
from univip.errors import UnivipError
from univip.proposals.cut import FOLDER


def won(kind: str, run_dir: Path) -> set[tuple[str, int]]:
    """What an attempt at this kind of work need not do again; equal where nothing was won in between."""
    if kind == "train":
        return {(layout.name_of(step), step) for step in layout.data_steps(run_dir / "checkpoints")[-1:]}
    first, _, stride = kind.removeprefix("shard:").partition("/")
    if not stride:  # one shard is made whole or not at all
        return set()
    reports = {int(path.stem.partition("-")[2]): path for path in (run_dir / FOLDER).glob("shard-*.json")}
    mine = [path for shard, path in reports.items() if shard % int(stride) == int(first)]
    return {(path.name, path.stat().st_mtime_ns) for path in mine}  # one that is made anew was of no use


def unless_in_vain(outcome: Outcome, run_dir: Path, mine: Attempt, before: set[tuple[str, int]]) -> Outcome:
    """How an attempt is to end: as it did, or for good if the next one would come to the same.

    Args:
        outcome: How it ended.
        run_dir: Of the run.
        mine: The attempt.
        before: What was `won` when it began.
    """
    if outcome.exit_code != ExitCode.REQUEUE or outcome.cause != Cause.TIME_LIMIT:
        return outcome
    earlier = [
        other
        for other in read_attempts(run_dir)
        if (other.stage, other.slurm_job_id) == (mine.stage, mine.slurm_job_id)
        if other.number < mine.number and other.cause != Cause.BUSY
    ]
    if not earlier or earlier[-1].cause != Cause.TIME_LIMIT or won(mine.stage, run_dir) != before:
        return outcome
    cluster = load(run_dir).cluster
    if mine.stage == "train":
        what = "training must make a checkpoint within its time limit, but twice in a row made none."
    else:
        what = f"`{mine.stage}` must be done within its time limit, but twice in a row was not."
    more = f"{key_of(mine.stage, 'time_h', cluster)}={2 * asked_by(mine.stage, cluster).time_h:g}"
    if mine.stage == "train":
        more += f", or cluster.signal_delay_s={2 * cluster.signal_delay_s} if only saving takes too long"
    error = UnivipError(
        what,
        where=f"{run_dir}, attempts {earlier[-1].number} and {mine.number}: {outcome.message}",
        fix=f"the same request again with {more}",
    )
    return Outcome(ExitCode.EXHAUSTED, Cause.TIME_LIMIT, str(error))
