"""The agent of one node: starts rounds of workers, and decides after each or follows the node that does.

torch's elastic agent starts the workers and notices a dead one; it restarts nothing by itself. Every worker
leaves an outcome file, and the loop here decides from those: 76 and 77 end the job, 75 asks for a requeue,
anything else is a new round, on a budget that refills whenever a round made progress. The nodes of a job
agree through `jobs/nodes.py`. Workers are forked from a server that has everything loaded already, so a new
round costs a fraction of a second instead of an import. A node that fails its pre-flight at the start of an
attempt takes no part in it.

Signals are the agent's: the workers write a checkpoint and end with 75, and those that cannot are ended; see
`jobs/stopping.py`.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import time
import traceback
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import last_samples, slurm, unfit
from jobs.attempts import STOP_FILE, Attempt, own_view, read_attempts
from jobs.config import Config
from jobs.outcomes import Cause, ExitCode, Outcome
from jobs.stopping import SIGNALS, OutOfTimeError, StopRequest
from monitoring import gpu
from monitoring.journal import Journal
from monitoring.kinds import RESTART_CAUSES
from univip.checkpoint import layout
from univip.observe import Observer

if TYPE_CHECKING:
    from jobs.nodes import First, Follower, Nodes, Report

# Exit code of a worker that ended in order, as all on its node did, and left its outcome. Not 0, after which
# torch's agent waits for the others in a way that never ends if a worker is killed meanwhile.
ENDED = 64
MAX_PAUSE_S = 60.0  # between two rounds
_POLL_S = 0.2
_POLL_WORKERS_S = 0.05
_STATES = {ExitCode.DONE: "done", ExitCode.REQUEUE: "stopped"}


def train(config: Config, run_dir: Path, attempt: Attempt) -> Outcome:
    """Run rounds of workers until the training is done or cannot go on: the agent of the first node."""
    stop = StopRequest(config.cluster.signal_delay_s)
    stop.listen(attempt.directory(run_dir))
    _prepare()
    from jobs.nodes import First

    with (
        Journal(run_dir, attempt=attempt.number, source="agent0") as journal,
        gpu.recorded(journal, 0, attempt.host),
        last_samples.pictured(config, run_dir, journal),
    ):
        journal.record("attempt", host=attempt.host, slurm_job_id=attempt.slurm_job_id, stage=attempt.stage)
        _tell_of_the_last(run_dir, attempt, journal)

        def leave_out(node: int, what: str) -> None:
            unfit.failed_preflight(run_dir, attempt, slurm.host_of(node), what, journal)

        here = slurm.Execution.here()
        nodes = First(here, attempt.number, in_order=ENDED, on_unfit=leave_out, while_waiting=stop.check)
        if what := _preflight(config, run_dir, attempt, node=0):
            leave_out(0, what)
            message = f"{slurm.host_of(0)}, which leads the others, failed its pre-flight: {what}"
            number, outcome = 0, unfit.outcome(run_dir, attempt, message)
        else:
            number, outcome = _rounds(config, run_dir, attempt, journal, nodes, stop)
        nodes.end(number, outcome)
        journal.record("run", state=_STATES.get(ExitCode(outcome.exit_code), "failed"))
    return outcome


def follow(config: Config, run_dir: Path) -> Outcome:
    """Take part in the rounds that the first node decides on: the agent of every other node.

    If the agent of the first node dies, it is started anew, with a new attempt; this one waits for that.
    """
    here = slurm.Execution.here()
    stop = StopRequest(config.cluster.signal_delay_s)
    _prepare()
    from torch.distributed import DistError

    from jobs.nodes import FirstNodeLostError, Follower

    while True:
        try:
            nodes = Follower(
                here,
                while_waiting=stop.check,
                has_ended=lambda: _end_of_the_first(run_dir, here) is not None,
            )
        except FirstNodeLostError as error:
            return Outcome(ExitCode.REQUEUE, Cause.NODE_FAILURE, f"the first node is gone: {error}")
        except (DistError, RuntimeError) as error:
            return _without_the_first(run_dir, here, str(error))
        except OutOfTimeError as error:
            return Outcome(ExitCode.REQUEUE, Cause.STOPPED, str(error))
        mine = own_view(nodes.attempt, "train", here)
        try:
            stop.listen(mine.directory(run_dir))
            with (
                Journal(run_dir, attempt=mine.number, source=f"agent{here.node}") as journal,
                gpu.recorded(journal, here.node, mine.host),
            ):
                if what := _preflight(config, run_dir, mine, node=here.node):
                    return nodes.stay_out(f"{mine.host}: {what}")
                return _follow_rounds(config, run_dir, mine, nodes)
        except OutOfTimeError as error:
            with suppress(DistError, RuntimeError):  # the first node may be gone already
                nodes.leave()
            return Outcome(ExitCode.REQUEUE, Cause.STOPPED, str(error))
        except (DistError, RuntimeError):
            traceback.print_exc()
        finally:
            nodes.close()


def _without_the_first(run_dir: Path, here: slurm.Execution, silence: str) -> Outcome:
    """What a node does whose first node never answered: as that one has ended, if it has left word of it.

    Only a node that is down is a reason to queue again: what else keeps the first one from answering may do
    so each time, and `univip supervise`, which starts a job anew that failed, has a budget.
    """
    if outcome := _end_of_the_first(run_dir, here):
        return outcome
    cause, why = slurm.why_ended(here.job_id, here.restart, slurm.host_of(0))
    if cause == Cause.NODE_FAILURE:
        return Outcome(ExitCode.REQUEUE, cause, f"the first node is gone: {silence}; {why}")
    return Outcome(ExitCode.CRASH, Cause.CRASH, f"the first node has left no word: {silence}")


def _end_of_the_first(run_dir: Path, here: slurm.Execution) -> Outcome | None:
    """How the newest attempt of this execution of the job has ended; None if it has not, or left no word."""
    of_job = [
        each
        for each in read_attempts(run_dir)
        if (each.stage, each.slurm_job_id, each.slurm_restart) == ("train", here.job_id, here.restart)
    ]
    if not of_job or of_job[-1].exit_code is None:
        return None
    return Outcome(of_job[-1].exit_code, Cause(of_job[-1].cause), of_job[-1].message)


def _follow_rounds(config: Config, run_dir: Path, mine: Attempt, nodes: Follower) -> Outcome:
    while True:
        found = nodes.wait_for_round()
        if isinstance(found, Outcome):
            return found
        number, members = found
        nodes.report(number, _run_round(config, run_dir, mine, number, nodes, members))
        outcome = nodes.verdict(number)
        if outcome is not None:
            return outcome


def _preflight(config: Config, run_dir: Path, mine: Attempt, *, node: int) -> str:
    """What is wrong with this node; empty if nothing is, or nobody wants to know."""
    if not config.resilience.preflight:
        return ""
    from jobs.preflight import fault_of_node
    from univip.resilience.faults import breaks_preflight

    # Not in the folder of the attempt, which is so new that another node may not see it yet.
    return fault_of_node(
        run_dir, workers=_workers_per_node(config), is_broken=breaks_preflight(node, mine.number)
    )


def _prepare() -> None:
    """Of this process, before torch is used."""
    _start_server()
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are ours
    # The same number of workers on each node: torch need not ask around who has how many.
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"
    # Its tracebacks are of its own waiting; what went wrong stands in the outcome files. And the first that
    # is logged loads torch._dynamo, which takes seconds. Some loggers take their level from the variable.
    os.environ["LOGLEVEL"] = "CRITICAL"
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _tell_of_the_last(run_dir: Path, attempt: Attempt, observer: Observer) -> None:
    """Put into the journal why this attempt was needed; who ended the one before could not always say so."""
    before = [
        other
        for other in read_attempts(run_dir)
        if other.stage == attempt.stage and other.number < attempt.number and other.cause != Cause.BUSY
    ]
    if before and before[-1].cause in RESTART_CAUSES:
        observer.record("restart", cause=before[-1].cause, message=before[-1].message)


def _rounds(
    config: Config, run_dir: Path, attempt: Attempt, observer: Observer, nodes: First, stop: StopRequest
) -> tuple[int, Outcome]:
    """Round after round, until one ends in a way that a new one would not change; its number and outcome."""
    restarts_left = config.resilience.max_restarts
    failed: Outcome | None = None  # of the round before, if it ended too early
    for number in itertools.count():
        before = _newest_checkpoint(run_dir)
        nodes.stop_round = attempt.round_directory(run_dir, number) / STOP_FILE
        outcome = _decide_round(config, run_dir, attempt, number, nodes, failed, observer)
        failed = None
        if outcome.cause == Cause.STOPPED and nodes.stop_round.exists() and not stop.is_asked():
            nodes.again(number)  # with the node for which its workers stopped
            continue
        if outcome.exit_code != ExitCode.CRASH:
            return number, outcome
        has_progressed = _newest_checkpoint(run_dir) > before
        restarts_left = config.resilience.max_restarts if has_progressed else restarts_left - 1
        if restarts_left < 0:
            rounds = config.resilience.max_restarts + 1
            message = f"{rounds} rounds ended without a new checkpoint; the last: {outcome.message}"
            return number, Outcome(ExitCode.EXHAUSTED, outcome.cause, message)
        failed = outcome
        # The first new round starts at once; what outlasts it, such as a lost mount, is given time.
        failures = config.resilience.max_restarts - restarts_left
        pause_s = 2.0**failures - 1.0 if failures > 1 else 0.0
        if _is_stopped_within(pause_s, stop):
            return number, Outcome(ExitCode.REQUEUE, Cause.STOPPED, "stopped between two rounds")
        nodes.again(number)
    raise AssertionError("unreachable: rounds have no last number")


def _decide_round(
    config: Config,
    run_dir: Path,
    attempt: Attempt,
    number: int,
    nodes: First,
    failed: Outcome | None,
    observer: Observer,
) -> Outcome:
    """Run one round on all nodes that take part; one outcome for it."""
    from jobs.nodes import TooFewNodesError

    try:
        members = nodes.gather(number, config.cluster.nodes.min)
        if failed:  # told now, for if too few nodes are left it is the next attempt that begins anew
            observer.record("restart", cause=failed.cause.value, message=failed.message)
        own = _run_round(config, run_dir, attempt, number, nodes, members)
        reports, lost = nodes.collect(number, members, own)
        for node in lost:
            unfit.lost(run_dir, attempt, slurm.host_of(node))
    except TooFewNodesError as error:
        return unfit.outcome(run_dir, attempt, str(error))
    except OutOfTimeError as error:
        return Outcome(ExitCode.REQUEUE, Cause.STOPPED, str(error))
    except Exception as error:  # noqa: BLE001 - of the rendezvous, say: a new round may do better
        traceback.print_exc()
        return Outcome.of_error(error)
    return _judge(reports, lost)


def _is_stopped_within(pause_s: float, stop: StopRequest) -> bool:
    """Wait, unless asked to stop."""
    end = time.monotonic() + min(pause_s, MAX_PAUSE_S)
    while not stop.is_asked() and time.monotonic() < end:
        time.sleep(_POLL_S)
    return stop.is_asked()


def _start_server() -> None:
    """Start the process that workers are forked from; it loads torch while this one does."""
    # Also what a worker would load later: to read its configuration, and its first photograph.
    multiprocessing.set_forkserver_preload(
        ["jobs.agent", "jobs.worker", "omegaconf", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"]
    )
    # SLURM signals every process of a step, and workers end without their server. What is blocked here stays
    # blocked in what is started; a signal that comes meanwhile is kept for this process.
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # each time: the tracker unblocks some
        start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _work(run_dir: str, attempt: Attempt, number: int) -> None:
    """What a worker runs. Named here because the agent would have to load `jobs.worker` to name it there."""
    from jobs import worker

    worker.main(run_dir, attempt, number)


def _run_round(
    config: Config, run_dir: Path, mine: Attempt, number: int, nodes: Nodes, members: list[int]
) -> Report:
    """This node's part of a round."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from jobs.elastic import ElasticAgent
    from jobs.nodes import Report, RoundOverError

    directory = mine.round_directory(run_dir, number)
    directory.mkdir(parents=True, exist_ok=True)
    workers = _workers_per_node(config)
    spec = WorkerSpec(
        role="worker",
        local_world_size=workers,
        entrypoint=_work,
        args=(str(run_dir), mine, number),
        rdzv_handler=nodes.rendezvous(number, members),
        max_restarts=0,
        monitor_interval=_POLL_WORKERS_S,
    )
    agent = ElasticAgent(spec)
    rank, exit_code = -1, 0
    try:
        failures = agent.run().failures
        rank, failure = ChildFailedError("worker", failures).get_first_failure()
        exit_code = failure.exitcode
    except RoundOverError:
        pass  # torch's agent has ended the workers
    first = members.index(nodes.here.node) * workers
    outcomes = {each: Outcome.load(outcome_path(directory, each)) for each in range(first, first + workers)}
    return Report(
        rank,
        exit_code,
        [outcome for outcome in outcomes.values() if outcome],
        [each for each in outcomes if not outcomes[each] and not answer_path(directory, each).exists()],
    )


def outcome_path(directory: Path, rank: int) -> Path:
    """Where a worker leaves how it ended; the folder is that of its round."""
    return directory / f"rank-{rank}.json"


def answer_path(directory: Path, rank: int) -> Path:
    """What a worker makes when its agent has told it to end, for want of an outcome."""
    return directory / f"rank-{rank}.ended"


def _judge(reports: list[Report], lost: list[int]) -> Outcome:
    """One outcome for the round, from the files of its workers; the most decided one rules.

    Args:
        reports: Of the nodes.
        lost: Nodes that could not report.
    """
    outcomes = [outcome for report in reports for outcome in report.outcomes]
    for code in (ExitCode.REFUSED, ExitCode.EXHAUSTED):
        for outcome in outcomes:
            if outcome.exit_code == code:
                return outcome
    crashes = [outcome for outcome in outcomes if outcome.exit_code == ExitCode.CRASH]
    disorder = [report for report in reports if report.exit_code != ENDED]
    if crashes or disorder:
        own = [outcome for outcome in crashes if outcome.cause != Cause.LOST_PEER]
        # A rank that was killed leaves no file; the others then fail for want of it.
        was_killed = bool(crashes) or any(report.exit_code < 0 for report in disorder)
        cause = own[0].cause if own else Cause.KILLED if was_killed else Cause.CRASH
        if lost and not own:
            cause = Cause.NODE_FAILURE
        what = [f"node {node} of the job is gone" for node in lost]
        if cause == Cause.HANG:  # nobody but its peers could tell: it neither spoke nor ended when told to
            what += [f"rank {rank} was silent" for report in reports for rank in report.silent]
        what += [f"rank {r.rank} ended with exit code {r.exit_code}" for r in disorder if r.rank >= 0]
        return Outcome(ExitCode.CRASH, cause, "; ".join([*what, *(outcome.message for outcome in own)]))
    for outcome in outcomes:
        if outcome.exit_code == ExitCode.REQUEUE:
            return outcome
    return Outcome(ExitCode.DONE)


def _workers_per_node(config: Config) -> int:
    import torch

    return config.cluster.workers_per_node or torch.cuda.device_count() or 1


def _newest_checkpoint(run_dir: Path) -> int:
    return max(layout.data_steps(run_dir / "checkpoints"), default=-1)
