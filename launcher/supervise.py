"""Resubmits what SLURM gave up on: jobs that ended for a reason of the cluster, not of the run.

SLURM queues a job again by itself after a preemption or the loss of a node; not one whose agent was killed
too often, whose memory was too small, or that could not be queued again. What a person must look at stays: a
spent budget (76), wrong data or configuration (77), and what somebody cancelled. A budget for each cause
refills with progress, and pauses grow; both are counted from the ledger, where each resubmission that SLURM
took stands. Nodes that failed their pre-flight, or were lost twice, are left out for a day.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from jobs import unfit
from jobs.attempts import read_attempts
from jobs.outcomes import Cause, ExitCode
from jobs.requests import Request
from jobs.slurm import known_nodes
from launcher.runs import JOBS_FILE, SubmittedJobs, is_foreign
from launcher.shards import finished_shards
from launcher.states import RunState, State, read_state
from univip.checkpoint import layout
from univip.errors import UnivipError
from univip.resilience.ledger import Ledger

_logger = logging.getLogger(__name__)

_BUDGET = {Cause.OUT_OF_MEMORY: 1, Cause.CRASH: 2}  # in a row without progress
_USUAL_BUDGET = 5
_FIRST_PAUSE_S = 60.0  # before the second resubmission in a row; it doubles
_LONGEST_PAUSE_S = 3600.0


@dataclass(frozen=True)
class Decision:
    """What to do about one run.

    Attributes:
        resubmit: Whether to submit it again now.
        why: In words.
        cause: What ended it.
        progress: Stages and shards that are done, and data step of the newest checkpoint; equal where nothing
            was won.
        without: Nodes that it shall not be given again.
    """

    resubmit: bool
    why: str
    cause: str = ""
    progress: str = ""
    without: tuple[str, ...] = ()


def decide(run_dir: Path, *, now: float) -> Decision | None:
    """What to do about a run; None if nothing has to be done, or nothing by us.

    Args:
        run_dir: Of the run.
        now: Unix time, s.
    """
    request = Request.load(run_dir)
    if request is None or not (run_dir / JOBS_FILE).exists() or is_foreign(run_dir):
        return None
    state = read_state(run_dir)
    if state.state is State.queued and state.cause and state.message:  # held
        return Decision(False, f"{state.cause}: {state.message}", state.cause)
    if state.state not in (State.stopped, State.failed):
        return None
    if code := _needs_a_person(run_dir, request, state):
        return Decision(False, f"ended with {code}, which a person must look at", state.cause)
    cause = state.cause or str(Cause.UNKNOWN)
    steps = max(layout.data_steps(run_dir / "checkpoints"), default=-1)
    shards = sum(len(finished_shards(each)) for each in request.directories(run_dir))
    done = len(request.stages) - len(request.remaining(run_dir.parent))
    progress = f"{done} stages, {shards} shards, data step {steps}"
    before = [
        record
        for record in Ledger(run_dir / "ledger.jsonl").read()
        if record["kind"] == "supervise" and (record["cause"], record["progress"]) == (cause, progress)
    ]
    budget = _BUDGET.get(Cause(cause), _USUAL_BUDGET) if cause in list(Cause) else _USUAL_BUDGET
    if len(before) >= budget:
        return Decision(
            False, f"resubmitted {len(before)} times for {cause} without progress", cause, progress
        )
    pause_s = min(_FIRST_PAUSE_S * 2 ** (len(before) - 1), _LONGEST_PAUSE_S) if before else 0.0
    wait_s = before[-1]["time"] + pause_s - now if before else 0.0
    if wait_s > 0:
        at = time.strftime("%H:%M:%S", time.localtime(now + wait_s))
        return Decision(False, f"waits until {at} before it is resubmitted for {cause}", cause, progress)
    without = _unfit(run_dir, cause, now=now)
    why = f"resubmitted in {state.stage}: {cause}{'; without ' if without else ''}{', '.join(without)}"
    return Decision(True, why, cause, progress, without)


def resubmit(run_dir: Path, decision: Decision) -> str:
    """Carry a decision out, and write it down once SLURM has taken the jobs; what became of it, in words.

    What SLURM refuses, or another supervisor has just done, does not count against the budget of the run.
    """
    from launcher.plan import plan_again
    from launcher.submission import submit

    plan = replace(plan_again(run_dir), unfit=decision.without)
    if before := Request.load(run_dir):  # `@last` is what a person submitted last
        plan = replace(plan, request=replace(plan.request, submitted=before.submitted))
    typed = run_dir / "overrides.txt"
    overrides = typed.read_text(encoding="utf-8").splitlines() if typed.exists() else []
    done = submit(plan, overrides, keeps_code=True)
    if not done.is_new:
        return done.message
    fields = {"cause": decision.cause, "progress": decision.progress, "without": decision.without}
    Ledger(run_dir / "ledger.jsonl").append("supervise", **fields)
    return decision.why


def _unfit(run_dir: Path, cause: str, *, now: float) -> tuple[str, ...]:
    """Nodes to leave out, of those that SLURM still has: it refuses a job that names another one."""
    last = read_attempts(run_dir)[-1:]
    lost = next((each for each in last if each.ended is None and cause == Cause.NODE_FAILURE), None)
    return tuple(known_nodes(unfit.unfit_hosts(run_dir, now=now, just_lost=lost)))


def _needs_a_person(run_dir: Path, request: Request, state: RunState) -> int:
    """The exit code that says so of the stage that ended; of an array any element will do. Else 0."""
    run = next((stage.run for stage in request.stages if stage.kind == state.stage), run_dir.name)
    jobs = SubmittedJobs.load(run_dir)
    job_id = jobs.ids.get(state.stage, "") if jobs else ""
    codes = {
        each.stage: each.exit_code
        for each in read_attempts(run_dir.parent / run)
        if each.exit_code != ExitCode.BUSY and each.slurm_job_id.partition("_")[0] == job_id
    }
    return next((code for code in codes.values() if code in (ExitCode.EXHAUSTED, ExitCode.REFUSED)), 0)


def round_of(runs: list[Path]) -> tuple[list[str], bool]:
    """Look at every run once, and resubmit what should be.

    Returns:
        What was done or is waited for, in words; and whether all runs could be looked at.
    """
    said, is_well = [], True
    for run_dir in runs:
        try:
            decision = decide(run_dir, now=time.time())
            if decision:
                why = resubmit(run_dir, decision) if decision.resubmit else decision.why
                said.append(f"{run_dir.name}: {why}")
        except Exception as error:  # a damaged file, a full disk: the other runs have done nothing wrong
            _logger.debug("looking at %s", run_dir, exc_info=True)
            what = str(error).splitlines()[0] if isinstance(error, UnivipError) else repr(error)
            said.append(f"{run_dir.name}: {what}")
            is_well = False
    return said, is_well
