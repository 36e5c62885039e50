"""The one door into every job: a kind of work and a run directory, both text.

`run_slurm_job` is all that submitit pickles, and `python -m jobs.base KIND RUN_DIR` is the same for the local
supervisor. Everything else is read from the run directory at every start, so a job needs no state of the
process that submitted it. What a kind imports is loaded when it runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from jobs import slurm
from jobs.attempts import Attempt, RunBusyError, attempt
from jobs.config import Config, RunHeader, RunKind, data_dir, load, load_header
from jobs.futile import unless_in_vain, won
from jobs.identity import changed_keys, run_facts
from jobs.outcomes import Cause, ExitCode, Outcome
from jobs.requests import is_cancelled
from jobs.unfit import unfit_hosts
from monitoring.journal import Journal
from univip.atomic import write_text
from univip.errors import ConfigError, UnivipError

IN_SLURM = "in-slurm"  # what only `run_slurm_job` asks for
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_PARENT_POLL_S = 1.0
_DEATHS = 3  # within one execution of a job
_CANCELLED = Outcome(ExitCode.REQUEUE, Cause.CANCELLED, "cancelled")
_has_no_parent = threading.Event()


class _Stopped(BaseException):
    """A signal asked this process to stop; what it did is kept, and it is to be started again."""


def run_job(kind: str, run_dir: str) -> int:
    """Do one kind of work on a run.

    Args:
        kind: `local` (supervise a whole request), prepare, shards, `shard:N`, merge, train or evaluate.
            `shard:N/S` is shard N and every S-th after it.
        run_dir: The run directory.

    Returns:
        One of `jobs.outcomes.ExitCode`.
    """
    _prepare(run_dir)
    if kind == "local":
        from jobs.local import supervise

        return supervise(Path(run_dir))
    return _attempt(kind, Path(run_dir)).exit_code


def run_slurm_job(kind: str, run_dir: str) -> None:
    """`run_job` as SLURM needs it: the end is an exit status, and 75 puts the job back into the queue.

    It never returns to submitit, which would pickle a result that nobody reads, and fail if an execution
    before this one was killed while it did so.

    srun does not start a task again that died, as by the system for want of memory. So the work is done by a
    process of its own, and this one, which does nothing that could kill it, starts the next.
    """
    # SLURM signals every process. This one does not answer, nor does submitit in it; the other starts with
    # the signals blocked, so that one that comes before it can answer waits until it can.
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    for _ in range(1 + _DEATHS):
        command = [sys.executable, "-m", "jobs.base", IN_SLURM, kind, run_dir]
        code = subprocess.run(command, check=False).returncode
        if code >= 0:
            raise SystemExit(code)
        sys.stderr.write(f"{kind} was killed by signal {-code}\n")
    raise SystemExit(ExitCode.CRASH)


def run_slurm_task(kind: str, run_dir: str) -> None:
    """The work of one task of SLURM; puts the job back into the queue if it asks for that.

    Not if somebody cancelled it, which a requeue would undo, nor without the task that kept this process: a
    job that SLURM counts as failed is for `univip supervise`, which has a budget.
    """
    here = slurm.Execution.here()
    follows = kind == "train" and here.node > 0
    try:
        _prepare(run_dir)
        outcome = _follow(Path(run_dir)) if follows else _attempt(kind, Path(run_dir))
    except _Stopped:  # outside of its work: before it began, or when it was through
        outcome = _why_stopped(load(Path(run_dir)), Path(run_dir))
    if follows:  # the first node asks for it, unless it is lost
        is_to_go_on = outcome.cause == Cause.NODE_FAILURE
    else:
        is_to_go_on = outcome.cause != Cause.CANCELLED and not _has_no_parent.is_set()
    if outcome.exit_code == ExitCode.REQUEUE and is_to_go_on:
        unfit = unfit_hosts(Path(run_dir), now=time.time())
        if refusal := slurm.requeue(here, without=unfit):
            sys.stderr.write(f"SLURM did not put job {here.job_id} back as asked: {refusal}\n")
    if outcome.exit_code != ExitCode.DONE:
        raise SystemExit(outcome.exit_code)


def _follow(run_dir: Path) -> Outcome:
    """Take part in the attempt that the first node leads."""
    if is_cancelled(run_dir):
        return _CANCELLED
    from jobs.agent import follow

    outcome = follow(load(run_dir), run_dir)
    if outcome.message:
        sys.stderr.write(outcome.message + "\n")
    return outcome


def _prepare(run_dir: str) -> None:
    """Before any child starts: submitit ignores SIGTERM and answers SIGUSR2 with a requeue of its own."""
    for number in _SIGNALS:
        signal.signal(number, _stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with suppress(ConfigError):  # of a configuration that cannot be read the attempt will tell
        os.umask(load(Path(run_dir)).paths.umask)


def _attempt(kind: str, run_dir: Path) -> Outcome:
    """One attempt at one kind of work, from its claim to its outcome."""
    outcome: Outcome | None = None
    try:
        with attempt(run_dir, kind, exclusive=not kind.startswith("shard:")) as mine:
            before = won(kind, run_dir)
            outcome = unless_in_vain(_attempted(kind, run_dir, mine), run_dir, mine, before)
            mine.exit_code, mine.cause = int(outcome.exit_code), str(outcome.cause)
            mine.message = outcome.message
        if kind in ("train", "evaluate"):
            # What SLURM sends from now on is no news, and must not kill this process: its parent would start
            # the work again.
            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
            if outcome.exit_code != ExitCode.REQUEUE:  # which leaves no time for it
                _write_report(Path(run_dir))
    except RunBusyError as error:
        outcome = Outcome(ExitCode.BUSY, Cause.BUSY, str(error))
    except OSError as error:
        # On a full disk a request to stop is followed all the same: the next attempt writes down how this one
        # ended. What is done, though, is done only if it stands there.
        if outcome is None or outcome.exit_code != ExitCode.REQUEUE:
            raise
        sys.stderr.write(f"how the attempt ended cannot be written down: {error}\n")
    if outcome.message:
        sys.stderr.write(outcome.message + "\n")
    return outcome


def _why_stopped(config: Config, run_dir: Path) -> Outcome:
    """The outcome of work that was told to stop; only a cancelled one is not started again."""
    if is_cancelled(run_dir):
        return _CANCELLED
    if _has_no_parent.is_set():
        return Outcome(ExitCode.REQUEUE, Cause.KILLED, "the process that watched over this one was killed")
    here, delay_s = slurm.Execution.here(), config.cluster.signal_delay_s
    return Outcome(ExitCode.REQUEUE, *slurm.why_signalled(here, signal_delay_s=delay_s))


def _attempted(kind: str, run_dir: Path, mine: Attempt) -> Outcome:
    """The outcome of the work, whatever happens in it."""
    try:
        # The signal of a cancel may have come before there was a process to take it, in a prolog, say. But
        # the file was made before that, and from now on a signal is answered.
        if is_cancelled(run_dir):
            return _CANCELLED
        if kind == "train":
            from jobs.agent import train

            _verify_boxes(run_dir)
            outcome = train(load(run_dir), run_dir, mine)
            if outcome.cause != Cause.STOPPED:
                return outcome
            why = _why_stopped(load(run_dir), run_dir)
            return replace(why, message="; ".join(filter(None, [why.message, outcome.message])))
        with Journal(run_dir, attempt=mine.number, source=kind.partition("/")[0].replace(":", "")) as journal:
            _work(kind, run_dir, mine, journal)
    except _Stopped:
        return _why_stopped(load(run_dir), run_dir)
    except Exception as error:  # noqa: BLE001 - the outcome says what it was
        if not isinstance(error, UnivipError):
            traceback.print_exc()
        return Outcome.of_error(error)
    return Outcome(ExitCode.DONE)


def _write_report(run_dir: Path) -> None:
    """Write `results/report.html`; nothing that goes wrong here changes the outcome."""
    try:
        from monitoring.web.history import History
        from monitoring.web.report import FILE, report

        history = History(run_dir)
        history.update()
        (run_dir / FILE).parent.mkdir(exist_ok=True)
        write_text(run_dir / FILE, report(run_dir, history, changed_keys(load(run_dir))))
    except Exception:  # noqa: BLE001 - told to the log
        traceback.print_exc()


def _verify_boxes(run_dir: Path) -> None:
    """Read the boxes that training maps, once per attempt: a damaged store must not be trained on."""
    if load_header(run_dir).proposals:
        from univip.data.proposals import ProposalStore

        ProposalStore.verify(data_dir(run_dir) / "proposals.arrow")


def _work(kind: str, run_dir: Path, mine: Attempt, journal: Journal) -> None:
    """Everything but training, told to the journal."""
    config, header = load(run_dir), load_header(run_dir)
    stage = "evaluate" if kind == "evaluate" else "proposals"
    run = run_facts(run_dir)
    journal.record("attempt", host=mine.host, slurm_job_id=mine.slurm_job_id, stage=stage)
    journal.record("run", state="evaluating" if stage == "evaluate" else "proposals", **run)
    try:
        if kind == "evaluate":
            from jobs.evaluate import evaluate

            evaluate(config, run_dir, journal)
        else:
            _make_boxes(kind, config, header, run_dir, journal)
    except BaseException as error:
        journal.record("run", state="stopped" if isinstance(error, _Stopped) else "failed", **run)
        raise
    if kind in ("evaluate", "merge"):
        journal.record("run", state="done", **run)


def _make_boxes(kind: str, config: Config, header: RunHeader, run_dir: Path, journal: Journal) -> None:
    from jobs import proposals

    if kind == "prepare":
        index = proposals.prepare(
            config, run_dir, expected_fingerprint=header.fingerprint, num_shards=header.num_shards
        )
        for reason, paths in index.refused.items():
            for path in paths:
                journal.record("image_failed", path=path, reason=reason)
        if header.kind is RunKind.proposals:  # else only the index was asked for
            proposals.prepare_search(config)
    elif kind == "merge":
        proposals.merge(config, run_dir)
    elif kind == "shards":
        proposals.run_shards(config, run_dir, journal)
    else:
        first, _, stride = kind.removeprefix("shard:").partition("/")
        # An array is made before all headers are read; of very few usable images there are fewer shards.
        count = proposals.num_shards(config, run_dir)
        last = count if stride else min(int(first) + 1, count)
        for shard in range(int(first), last, int(stride or 1)):
            proposals.run_shard(config, run_dir, shard, journal)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:  # a second one must not cut the clean-up short
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped


def _stop_without_parent() -> None:
    """Ask this process to stop once its parent is gone: nobody would see how it ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        _has_no_parent.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    _stop_without_parent()
    if sys.argv[1] == IN_SLURM:
        run_slurm_task(*sys.argv[2:])
    else:
        raise SystemExit(run_job(*sys.argv[1:]))
