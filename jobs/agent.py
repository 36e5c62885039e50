"""The training job on one node: an elastic agent that starts rounds of workers and decides after each.

torch's elastic agent forms the process group and notices a dead worker; it restarts nothing by itself. Every
worker leaves an outcome file, and the loop here decides from those: 76 and 77 end the job, 75 asks for a
requeue, anything else is a new round, on a budget that refills whenever a round made progress. Workers are
forked from a server that has everything loaded already, so a new round costs a fraction of a second instead
of an import.

SIGTERM and SIGUSR2 make a `stop` file that rank 0 watches: the workers write a checkpoint and end with 75.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import time
import traceback
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import FrameType

from jobs.attempts import STOP_FILE, Attempt, read_attempts
from jobs.config import Config
from jobs.outcomes import Cause, ExitCode, Outcome
from monitoring.catalog import RESTART_CAUSES
from monitoring.journal import Journal
from univip.checkpoint import layout
from univip.observe import NullObserver, Observer

# Exit code of a worker that ended in order, as all on its node did, and left its outcome. Not 0, after which
# torch's agent waits for the others in a way that never ends if a worker is killed meanwhile.
ENDED = 64
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
MAX_PAUSE_S = 60.0  # between two rounds
_POLL_S = 0.2
_STATES = {ExitCode.DONE: "done", ExitCode.REQUEUE: "stopped"}


def train(config: Config, run_dir: Path, attempt: Attempt) -> Outcome:
    """Run rounds of workers until the training is done or cannot go on."""
    _stop_on_signals(attempt.directory(run_dir) / STOP_FILE)
    _start_server()
    # The agent's shared store keeps addresses of dead workers across rounds (pytorch#167288).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Its tracebacks are of its own waiting; what went wrong stands in the outcome files. And the first that
    # is logged loads torch._dynamo, which takes seconds.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    node = os.environ.get("SLURM_NODEID", "0")
    with Journal(run_dir, attempt=attempt.number, source=f"agent{node}") as journal:
        journal.record("attempt", host=attempt.host, slurm_job_id=attempt.slurm_job_id, stage=attempt.stage)
        # Every node sees the same failures; one of them counts.
        observer = journal if node == "0" else NullObserver()
        _tell_of_the_last(run_dir, attempt, observer)
        outcome = _rounds(config, run_dir, attempt, observer)
        journal.record("run", state=_STATES.get(ExitCode(outcome.exit_code), "failed"))
    return outcome


def _tell_of_the_last(run_dir: Path, attempt: Attempt, observer: Observer) -> None:
    """Put into the journal why this attempt was needed; who ended the one before could not always say so."""
    before = [
        other
        for other in read_attempts(run_dir)
        if other.stage == attempt.stage and other.number < attempt.number and other.cause != Cause.BUSY
    ]
    if before and before[-1].cause in RESTART_CAUSES:
        observer.record("restart", cause=before[-1].cause, message=before[-1].message)


def _rounds(config: Config, run_dir: Path, attempt: Attempt, observer: Observer) -> Outcome:
    """Round after round, until one ends in a way that a new one would not change."""
    restarts_left = config.resilience.max_restarts
    for number in itertools.count():
        before = _newest_checkpoint(run_dir)
        try:
            outcome = _run_round(config, run_dir, attempt, number)
        except Exception as error:  # noqa: BLE001 - of the rendezvous, say: a new round may do better
            traceback.print_exc()
            outcome = Outcome.of_error(error)
        if outcome.exit_code != ExitCode.CRASH:
            return outcome
        has_progressed = _newest_checkpoint(run_dir) > before
        restarts_left = config.resilience.max_restarts if has_progressed else restarts_left - 1
        if restarts_left < 0:
            rounds = config.resilience.max_restarts + 1
            message = f"{rounds} rounds ended without a new checkpoint; the last: {outcome.message}"
            return Outcome(ExitCode.EXHAUSTED, outcome.cause, message)
        observer.record("restart", cause=outcome.cause.value, message=outcome.message)
        # The first new round starts at once; what outlasts it, such as a lost mount, is given time.
        failures = config.resilience.max_restarts - restarts_left
        pause_s = 2.0**failures - 1.0 if failures > 1 else 0.0
        if _is_stopped_within(pause_s, attempt.directory(run_dir) / STOP_FILE):
            return Outcome(ExitCode.REQUEUE, Cause.STOPPED, "stopped between two rounds")
    raise AssertionError("unreachable: rounds have no last number")


def _is_stopped_within(pause_s: float, stop_file: Path) -> bool:
    """Wait, unless asked to stop."""
    end = time.monotonic() + min(pause_s, MAX_PAUSE_S)
    while not stop_file.exists() and time.monotonic() < end:
        time.sleep(_POLL_S)
    return stop_file.exists()


def _start_server() -> None:
    """Start the process that workers are forked from; it loads torch while this one does."""
    multiprocessing.set_forkserver_preload(["jobs.agent", "jobs.worker"])
    # SLURM signals every process of a step, and workers end without their server. What is blocked here stays
    # blocked in what is started; a signal that comes meanwhile is kept for this process.
    for start in (resource_tracker.ensure_running, forkserver.ensure_running):
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # each time: the tracker unblocks some
        start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _work(run_dir: str, attempt: Attempt, number: int) -> None:
    """What a worker runs. Named here because the agent would have to load `jobs.worker` to name it there."""
    from jobs import worker

    worker.main(run_dir, attempt, number)


def _run_round(config: Config, run_dir: Path, attempt: Attempt, number: int) -> Outcome:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    directory = attempt.round_directory(run_dir, number)
    directory.mkdir(parents=True, exist_ok=True)
    launch = LaunchConfig(
        min_nodes=config.cluster.nodes.min,
        max_nodes=config.cluster.nodes.max,
        nproc_per_node=_workers_per_node(config),
        run_id=f"{run_dir.name}.{attempt.number}.{number}",
        rdzv_backend="c10d",
        rdzv_endpoint=_rendezvous_endpoint(),
        max_restarts=0,
        monitor_interval=0.1,
        start_method="forkserver",
        signals_to_handle="SIGQUIT",
    )
    try:
        elastic_launch(launch, _work)(str(run_dir), attempt, number)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _judge(directory, rank, failure.exitcode)
    raise AssertionError("unreachable: no worker exits with 0")


def _judge(directory: Path, rank: int, exit_code: int) -> Outcome:
    """One outcome for the round, from the files of its workers; the most decided one rules.

    Args:
        directory: Of the round.
        rank: The first worker that was seen to end.
        exit_code: Of that worker; negative for a signal.
    """
    outcomes = [outcome for path in sorted(directory.glob("rank-*.json")) if (outcome := Outcome.load(path))]
    for code in (ExitCode.REFUSED, ExitCode.EXHAUSTED):
        for outcome in outcomes:
            if outcome.exit_code == code:
                return outcome
    crashes = [outcome for outcome in outcomes if outcome.exit_code == ExitCode.CRASH]
    if crashes or exit_code != ENDED:
        own = [outcome for outcome in crashes if outcome.cause != Cause.LOST_PEER]
        # A rank that was killed leaves no file; the others then fail for want of it.
        cause = own[0].cause if own else Cause.KILLED if exit_code < 0 or crashes else Cause.CRASH
        what = [f"rank {rank} ended with exit code {exit_code}", *(outcome.message for outcome in own)]
        return Outcome(ExitCode.CRASH, cause, "; ".join(what))
    for outcome in outcomes:
        if outcome.exit_code == ExitCode.REQUEUE:
            return outcome
    return Outcome(ExitCode.DONE)


def _workers_per_node(config: Config) -> int:
    import torch

    return config.cluster.workers_per_node or torch.cuda.device_count() or 1


def _rendezvous_endpoint() -> str:
    """The first node of the allocation hosts the rendezvous; without SLURM this machine, on a free port."""
    job_id = os.environ.get("SLURM_JOB_ID", "")
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if not job_id or not nodes:
        return "localhost:0"
    from submitit.slurm.slurm import _parse_node_list

    # A port of its own for every job and requeue: a store that lingers must not answer for the next.
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return f"{_parse_node_list(nodes)[0]}:{20_000 + (int(job_id) * 7 + restart) % 20_000}"


def _newest_checkpoint(run_dir: Path) -> int:
    return max(layout.data_steps(run_dir / "checkpoints"), default=-1)


def _stop_on_signals(stop_file: Path) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        stop_file.touch()

    for number in _STOP_SIGNALS:
        signal.signal(number, stop)
