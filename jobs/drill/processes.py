"""Faults of real jobs: an agent and its workers as processes, killed, stopped, asked to stop, moved.

Many in one run: a run that lost a process twenty times must still end with the digest of one that lost none.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from jobs.config import load, load_header, store
from jobs.drill.job import Job, newest_checkpoint, reached, records
from jobs.drill.lab import ACTIONS, PLANTED, Lab, Step, decided, digest, proved, seconds_to_good, steps_of
from jobs.drill.results import Result
from jobs.outcomes import ExitCode
from jobs.replay import replay
from univip.resilience.faults import PLACES, marker_of
from univip.resilience.watchdog import FACTOR, FLOOR_S

_TARGET = 120  # data steps
_SIZE = (
    "views.scene_size=32",
    "model.hidden_dim=16",
    "model.embedding_dim=8",
    "train.global_batch=6",  # of two, three or four ranks; four do not divide it
    f"train.max_steps={_TARGET}",
    "checkpoint.every_steps=3",
    "resilience.healthy_after_steps=2",
)
_KILLS = 8  # in one run
_STARTS = 3  # of new attempts in one run; each takes seconds
_AFTER_S = 0.4  # a kill comes at a random moment of that many seconds after a new checkpoint
_LAST_WORDS = 4  # data steps before the end that are left alone
_PROMPT_S = 1.0  # by which a hang may be named later than promised: the watchdog looks four times a second
_SKIPPED = ("activation", "loss", "gradient")


def new_run(lab: Lab, name: str, *more: str) -> Path:
    """A small run of real processes, not started yet."""
    return lab.new(name, *_SIZE, *more)


@cache
def _calm(lab: Lab, workers: int) -> str:
    """Digest of the job that nothing happens to."""
    run_dir = new_run(lab, "calm-job", f"cluster.workers_per_node={workers}")
    with Job(run_dir) as job:
        code = job.wait()
    assert code == ExitCode.DONE, f"the undisturbed job ended with {code}: {run_dir}"
    return digest(run_dir)


def _result(
    kind: str,
    number: int,
    run_dir: Path,
    code: int,
    moments: Sequence[float],
    *,
    expected: dict[str, int],
    detected: int | None = None,
    calm: str = "",
    by_new_round: bool = True,
) -> Result:
    """What is seen of a run that has ended.

    Args:
        kind: Of the faults.
        number: Of the round trip.
        run_dir: The run.
        code: With which its last job ended.
        moments: When the faults happened, Unix time.
        expected: How many of each action they explain.
        detected: Faults that the run told of.
        calm: The digest it must have; empty where it need not.
        by_new_round: Whether only a new round can make the next good step: what is on its way as a process
            dies still arrives.
    """
    found = records(run_dir)
    actions = Counter(each["kind"] for each in found if each["kind"] in ACTIONS)
    unexplained = sum(max(0, count - expected.get(action, 0)) for action, count in actions.items())
    steps = steps_of(found)
    is_done = code == ExitCode.DONE and newest_checkpoint(run_dir) == _TARGET
    return Result(
        kind,
        number,
        trials=len(moments),
        detected=detected,
        recovered=len(moments) if is_done else 0,
        false_actions=unexplained,
        seconds=seconds_to_next_round(steps, moments) if by_new_round else seconds_to_good(steps, moments),
        is_equal=digest(run_dir) == calm if calm else None,
        problems=[] if is_done else [f"the job ended with {code}: {run_dir.name}"],
        **proved(run_dir, steps),
    )


def seconds_to_next_round(steps: Sequence[Step], moments: Sequence[float]) -> list[float]:
    """From each death to the next good step, which is one of a later round than any before."""
    found = []
    for moment in moments:
        last = max((step.round for step in steps if step.time <= moment), default=(0, 0))
        found += [step.time - moment for step in steps if step.is_good and step.round > last][:1]
    return found


def restarts(run_dir: Path, *causes: str) -> int:
    """How many new rounds there were, of these causes."""
    return sum(each["kind"] == "restart" and each["cause"] in causes for each in records(run_dir))


def _has_newer(run_dir: Path, data_step: int) -> bool:
    return newest_checkpoint(run_dir) > data_step


def _has_reached(run_dir: Path, data_step: int) -> bool:
    return reached(run_dir) >= data_step


def _has_restarted(run_dir: Path, times: int) -> bool:
    return restarts(run_dir, "hang") > times


def controls(lab: Lab, number: int, draws: random.Random) -> Result:
    """A job that nothing happens to."""
    run_dir = new_run(lab, "control", f"train.seed={draws.randrange(1000)}")
    with Job(run_dir) as job:
        code = job.wait()
    result = _result("control:job", number, run_dir, code, [], expected={})
    result.trials = 1
    result.recovered = int(not result.problems)
    return result


def _again_and_again(
    lab: Lab,
    number: int,
    draws: random.Random,
    *,
    kind: str,
    strike: Callable[[Job], float],
    more: tuple[str, ...] = (),
) -> Result:
    """Strike once after each new checkpoint; `strike` returns the time, or 0 if there was nothing to hit."""
    workers = 2 + number % 2
    run_dir = new_run(lab, kind.replace(":", "-"), f"cluster.workers_per_node={workers}", *more)
    moments: list[float] = []
    with Job(run_dir) as job:
        for _ in range(_KILLS):
            job.until(partial(_has_newer, run_dir, newest_checkpoint(run_dir)), "a new checkpoint")
            time.sleep(draws.uniform(0, _AFTER_S))
            if reached(run_dir) >= _TARGET - _LAST_WORDS:
                break
            if moment := strike(job):
                moments.append(moment)
        code = job.wait()
    return _result(
        kind,
        number,
        run_dir,
        code,
        moments,
        expected={"restart": len(moments)},
        detected=restarts(run_dir, "killed"),
        calm=_calm(lab, workers),
    )


def kill_rank(lab: Lab, number: int, draws: random.Random) -> Result:
    """Any rank dies at any moment, of a signal."""

    def strike(job: Job) -> float:
        ranks = job.until(job.ranks, "a rank")
        how = draws.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
        return send(draws.choice(sorted(ranks.values())), how) if ranks else 0.0

    return _again_and_again(lab, number, draws, kind="kill:rank", strike=strike)


def kill_write(lab: Lab, number: int, draws: random.Random) -> Result:
    """The rank that writes dies while it does."""

    def strike(job: Job) -> float:
        checkpoints = job.run_dir / "checkpoints"
        job.until(lambda: list(checkpoints.glob(".tmp-step-*")), "a checkpoint write", poll_s=0.0005)
        ranks = job.ranks()
        return send(ranks[0], signal.SIGKILL) if 0 in ranks else 0.0

    return _again_and_again(lab, number, draws, kind="kill:write", strike=strike)


def send(pid: int, number: signal.Signals) -> float:
    """Send a signal; the time, or 0 if there is no such process any more."""
    moment = time.time()
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return moment
    return 0.0


def _start_again(
    lab: Lab,
    number: int,
    draws: random.Random,
    *,
    kind: str,
    strike: Callable[[Job], None],
    before_start: Callable[[Path, int], None] = lambda run_dir, attempt: None,
    must_end_with: int | None = None,
    is_equal: bool = True,
) -> Result:
    """Strike, and begin a new attempt, as a scheduler would."""
    workers = 2 + number % 2
    run_dir = new_run(lab, kind.replace(":", "-"), f"cluster.workers_per_node={workers}")
    moments: list[float] = []
    right_ends = 0
    for attempt in range(_STARTS):
        before_start(run_dir, attempt)
        goal = (attempt + 1) * _TARGET // (_STARTS + 2)
        with Job(run_dir) as job:
            job.until(partial(_has_reached, run_dir, goal), f"data step {goal}")
            time.sleep(draws.uniform(0, _AFTER_S))
            moments.append(time.time())
            strike(job)
            right_ends += job.wait() == must_end_with
    before_start(run_dir, _STARTS)
    with Job(run_dir) as job:
        code = job.wait()
    return _result(
        kind,
        number,
        run_dir,
        code,
        moments,
        expected={},
        detected=right_ends if must_end_with is not None else None,
        calm=_calm(lab, workers) if is_equal else "",
    )


def kill_agent(lab: Lab, number: int, draws: random.Random) -> Result:
    """The agent dies; its workers must follow it."""
    return _start_again(
        lab, number, draws, kind="kill:agent", strike=lambda job: os.kill(job.agent, signal.SIGKILL)
    )


def kill_all(lab: Lab, number: int, draws: random.Random) -> Result:
    """Everything dies at once, as when the machine does."""
    return _start_again(lab, number, draws, kind="kill:all", strike=Job.kill)


def preempt(lab: Lab, number: int, draws: random.Random) -> Result:
    """The scheduler wants the machine back: the state is saved, and the job asks to be queued again."""
    return _start_again(
        lab,
        number,
        draws,
        kind="preempt",
        strike=lambda job: os.kill(job.agent, signal.SIGTERM),
        must_end_with=ExitCode.REQUEUE,
    )


def world(lab: Lab, number: int, draws: random.Random) -> Result:
    """Each attempt has another number of ranks: the audit proves that no sample is lost or repeated."""

    def resize(run_dir: Path, attempt: int) -> None:
        config = load(run_dir)
        cluster = replace(config.cluster, workers_per_node=(4, 2, 3, 4)[attempt])
        store(replace(config, cluster=cluster), load_header(run_dir), run_dir)

    return _start_again(
        lab, number, draws, kind="world", strike=Job.kill, before_start=resize, is_equal=False
    )


def kill_reader(lab: Lab, number: int, draws: random.Random) -> Result:
    """A process that reads photographs for a rank dies."""

    def strike(job: Job) -> float:
        readers = job.until(job.readers, "a reader")
        return send(readers[-1], signal.SIGKILL) if readers else 0.0

    result = _again_and_again(lab, number, draws, kind="kill:reader", strike=strike, more=("data.workers=1",))
    return replace(result, detected=None)  # a reader is not a rank: its rank fails, and says of what


def stop_rank(lab: Lab, number: int, draws: random.Random) -> Result:
    """A rank stands still; the others notice by the time-out of their collectives."""
    run_dir = new_run(lab, "stop-rank", "cluster.workers_per_node=2", "resilience.collective_timeout_s=5")
    moments: list[float] = []
    with Job(run_dir) as job:
        for turn in range(_STARTS):
            goal = (turn + 1) * _TARGET // (_STARTS + 2)
            job.until(partial(_has_reached, run_dir, goal), f"data step {goal}")
            ranks = job.until(job.ranks, "a rank")
            moments.append(time.time())
            send(draws.choice(sorted(ranks.values())), signal.SIGSTOP)
            job.until(partial(_has_restarted, run_dir, turn), "a restart")
        code = job.wait()
    return _result(
        "stop:rank",
        number,
        run_dir,
        code,
        moments,
        expected={"restart": len(moments)},
        detected=restarts(run_dir, "hang"),
        calm=_calm(lab, 2),
    )


def hang_rank(lab: Lab, number: int, draws: random.Random) -> Result:
    """A rank goes on for ever by itself: it must be named in time, and ended."""
    faults = [(draws.randrange(2), (turn + 1) * _TARGET // (_STARTS + 1)) for turn in range(_STARTS)]
    run_dir = new_run(lab, "hang-rank", "cluster.workers_per_node=2", "resilience.hang_timeout_s=6")
    texts = [f"hang:{rank}@{data_step}" for rank, data_step in faults]
    with Job(run_dir, plant=",".join(texts)) as job:
        code = job.wait()
    moments = [_planted_at(run_dir, text) for text in texts]
    found = records(run_dir)
    steps = steps_of(found)
    times = sorted(later.time - step.time for step, later in pairwise(steps))
    limit = max(FLOOR_S, FACTOR * times[int(0.95 * len(times))]) + _PROMPT_S
    named = sum(
        any(
            each["kind"] == "stall"
            and each["rank"] == rank
            and each["data_step"] == data_step
            and each["time"] - moment <= limit
            for each in found
        )
        for (rank, data_step), moment in zip(faults, moments, strict=True)
    )
    return _result(
        "hang:rank",
        number,
        run_dir,
        code,
        moments,
        expected={"restart": len(moments)},
        detected=min(named, restarts(run_dir, "hang")),
        calm=_calm(lab, 2),
    )


def _planted_at(run_dir: Path, text: str) -> float:
    """When a planted fault happened on the first of its ranks."""
    made = [path for rank in range(3) if (path := marker_of(run_dir / PLANTED, text, rank)).exists()]
    return min(path.stat().st_mtime for path in made)


def values(lab: Lab, number: int, draws: random.Random) -> Result:
    """A NaN in each place in turn, on one of two ranks or on both; one of them is computed again."""
    places = draws.sample(PLACES["nan"], len(PLACES["nan"]))
    at = {place: 12 + 14 * turn for turn, place in enumerate(places)}
    texts = [f"nan:{place}:{draws.choice(['0', '1', 'all'])}@{data_step}" for place, data_step in at.items()]
    run_dir = new_run(lab, "nan-ranks", "cluster.workers_per_node=2")
    with Job(run_dir, plant=",".join(texts)) as job:
        code = job.wait()
    skips = {each["data_step"] for each in decided(run_dir, "skip")}
    rollbacks = {each["at"] for each in decided(run_dir, "rollback")}
    seen = [step for place, step in at.items() if step in (skips if place in _SKIPPED else rollbacks)]
    result = _result(
        "nan:ranks",
        number,
        run_dir,
        code,
        [_planted_at(run_dir, text) for text in texts],
        expected={"skip": len(_SKIPPED), "rollback": len(places) - len(_SKIPPED)},
        detected=len(seen),
        by_new_round=False,
    )
    again: dict[str, Any] = replay(run_dir, str(draws.choice(seen))) if seen else {}
    return replace(result, replays=1, replayed=int(again.get("same_bits") is True))


def flip(lab: Lab, number: int, draws: random.Random) -> Result:
    """The lowest bit of one weight flips on one of three ranks: the rank is named, and no data are lost."""
    faults = [(draws.randrange(3), 20 + 30 * turn) for turn in range(_STARTS)]
    texts = [f"flip:{rank}@{data_step}" for rank, data_step in faults]
    run_dir = new_run(lab, "flip", "cluster.workers_per_node=3")
    with Job(run_dir, plant=",".join(texts)) as job:
        code = job.wait()
    named = [each["what"] for each in decided(run_dir, "rollback") if each["reason"] == "replicas_differ"]
    right = sum(
        what.startswith(f"rank {rank} differs") for what, (rank, _) in zip(named, faults, strict=False)
    )
    return _result(
        "flip",
        number,
        run_dir,
        code,
        [_planted_at(run_dir, text) for text in texts],
        expected={"rollback": len(faults)},
        detected=right,
        calm=_calm(lab, 3),
        by_new_round=False,
    )
