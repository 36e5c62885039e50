"""One rank of one round: environment in, outcome file out.

The agent starts `main` in a fresh process. Whatever happens here ends as `round-NN/rank-N.json`; only a
signal can prevent that, and then the agent sees the exit code.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from jobs import attempts, train
from jobs.agent import ENDED, answer_path, outcome_path
from jobs.attempts import STOP_FILE, Attempt
from jobs.config import load
from jobs.nodes import store_of_workers
from jobs.outcomes import Cause, ExitCode, Outcome
from jobs.slurm import Execution
from monitoring.journal import Journal
from univip.engine.distributed import Group
from univip.engine.reporting import Totals
from univip.engine.trainer import Ending
from univip.errors import PreflightError
from univip.resilience import preflight

_STOP_POLL_S = 0.5
_AGENT_POLL_S = 0.5
_OUTCOME_POLL_S = 0.02


def main(run_dir_text: str, attempt: Attempt, round_number: int) -> NoReturn:
    """Run this rank to the end of its round, and exit.

    Never by returning or raising: threads of the communication library could keep this process from ending,
    and torch's agent waits for ever if a rank that has returned is killed.

    Args:
        run_dir_text: The run directory.
        attempt: The attempt, owned by the agent; without its owner this process must not live on.
        round_number: Number of the round within it.
    """
    run_dir = Path(run_dir_text)
    rank = int(os.environ["RANK"])
    directory = attempt.round_directory(run_dir, round_number)
    _redirect_output(directory / f"rank-{rank}.log")
    _obey_only_the_agent(attempt, answer_path(directory, rank))
    path = outcome_path(directory, rank)
    journal = Journal(run_dir, attempt=attempt.number, round=round_number, rank=rank)

    def give_up(reason: str) -> None:
        """End this process from another thread; the one that trains does not come back."""
        journal.record("stop", outcome=ExitCode.CRASH.name.lower(), cause=Cause.HANG.value)
        journal.close()
        try:
            Outcome(ExitCode.CRASH, Cause.HANG, f"rank {rank}: {reason}").save(path)
        finally:
            os._exit(ExitCode.CRASH)

    try:
        ending = _train(run_dir, attempt, round_number, rank, journal, give_up)
        stopped = ending is Ending.STOPPED
        outcome = Outcome(ExitCode.REQUEUE, Cause.STOPPED) if stopped else Outcome(ExitCode.DONE)
    except Exception as error:  # noqa: BLE001 - the outcome file says what it was
        outcome = Outcome.of_error(error)
        if isinstance(error, torch.OutOfMemoryError):
            outcome = replace(outcome, cause=Cause.OUT_OF_MEMORY)
        elif _is_lost_peer(error):
            # One that died closes its connections; one that hangs does not answer.
            hangs = re.search("timed out|timeout", str(error), re.IGNORECASE)
            outcome = replace(outcome, cause=Cause.HANG if hangs else Cause.LOST_PEER)
        if outcome.exit_code == ExitCode.CRASH:
            traceback.print_exc()
        else:
            print(error, file=sys.stderr)  # noqa: T201
    journal.record("stop", outcome=ExitCode(outcome.exit_code).name.lower(), cause=outcome.cause.value)
    journal.close()
    exit_code = outcome.exit_code
    try:
        outcome.save(path)
        if exit_code in (ExitCode.DONE, ExitCode.REQUEUE):
            _wait_for_ranks_of_node(directory)
            exit_code = ENDED
    except OSError:  # a full disk; the exit code still tells the most of it
        traceback.print_exc()
    # Other ranks may wait in a collective for this one: the agent ends them as soon as one exits.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code or ExitCode.CRASH)


def _train(
    run_dir: Path,
    attempt: Attempt,
    round_number: int,
    rank: int,
    journal: Journal,
    on_hang: Callable[[str], None],
) -> Ending:
    config = load(run_dir)
    size = int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    cuda = torch.cuda.device_count() >= local_size  # NCCL takes one GPU per rank; with fewer, none is used
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(config.train.threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if size > 1:
        timeout = timedelta(seconds=config.resilience.collective_timeout_s)
        store = store_of_workers(round_number)
        dist.init_process_group(
            "nccl" if cuda else "gloo", timeout=timeout, store=store, rank=rank, world_size=size
        )
    try:
        journal.record("round", world_size=size, host=socket.gethostname())
        group = Group(rank, size, device)
        # In each round: it costs milliseconds, and one that it has ended must not be followed by one without.
        if config.resilience.preflight and (wrong := preflight.wrong_sum(group)):
            fix = "leave its node out: +cluster.extra.exclude=NODE"
            node = Execution.here().node_name or socket.gethostname()
            raise PreflightError(f"rank {rank}: {wrong}", where=node, fix=fix)
        return train.train_rank(
            config,
            run_dir,
            group=group,
            observer=journal,
            stop_requested=_stop_poll(
                attempt.directory(run_dir) / STOP_FILE,
                attempt.round_directory(run_dir, round_number) / STOP_FILE,
            ),
            still_owner=lambda: _is_newest(run_dir, attempt, round_number),
            totals=train.totals_so_far(run_dir) if rank == 0 else Totals(),
            on_hang=on_hang,
            place={"attempt": attempt.number, "round": round_number},
        )
    finally:
        if size > 1 and sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _wait_for_ranks_of_node(directory: Path) -> None:
    """Wait until each has left its outcome; if one cannot, the agent ends this process."""
    first = int(os.environ["RANK"]) - int(os.environ["LOCAL_RANK"])
    ranks = range(first, first + int(os.environ["LOCAL_WORLD_SIZE"]))
    while not all(outcome_path(directory, rank).exists() for rank in ranks):
        time.sleep(_OUTCOME_POLL_S)


def _is_lost_peer(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone: a consequence, not the cause."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_newest(run_dir: Path, attempt: Attempt, round_number: int) -> bool:
    """The fence: no newer round, be it of this attempt or of a newer one; a refused attempt has none."""
    newer = any(
        other.number > attempt.number and other.round_directory(run_dir, 0).exists()
        for other in attempts.read_attempts(run_dir)
    )
    return not newer and not attempt.round_directory(run_dir, round_number + 1).exists()


def _stop_poll(*paths: Path) -> Callable[[], bool]:
    """Whether a stop file exists; looks twice a second at most, network file systems charge for each."""
    state = {"next": 0.0, "stop": False}

    def stop_requested() -> bool:
        now = time.monotonic()
        if not state["stop"] and now >= state["next"]:
            state["next"] = now + _STOP_POLL_S
            state["stop"] = any(path.exists() for path in paths)
        return bool(state["stop"])

    return stop_requested


def _obey_only_the_agent(attempt: Attempt, answer: Path) -> None:
    """Leave the signals of a scheduler or a terminal, sent to every process, to the agent; end when it ends.

    Stopping is agreed through the stop file, so that all ranks stop at the same data step. An orphan would
    hold sockets and memory that the next round needs.

    Args:
        attempt: Whose owner is the agent.
        answer: Made when the agent tells this process to end: the sign that it could still listen.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT})
    server = os.getppid()

    def watch() -> None:
        while attempts.start_ticks(attempt.pid) == attempt.start_ticks and os.getppid() == server:
            told = signal.sigtimedwait({signal.SIGTERM}, _AGENT_POLL_S)
            if told is not None and told.si_pid == attempt.pid:
                with suppress(OSError):
                    answer.touch()
                break
        os._exit(ExitCode.CRASH)

    threading.Thread(target=watch, name="agent-watch", daemon=True).start()


def _redirect_output(path: Path) -> None:
    """Everything this process prints, also from C, goes to one file per rank."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
