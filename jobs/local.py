"""The local supervisor: runs the stages of one request on this machine, without a scheduler.

One detached process per request. It owns the run by a file lock that is free again when it dies, runs one
stage after the other as child processes, starts a stage again that asks for it (75), stops at the first that
fails, and writes all it knows to `supervisor.json`; `status`, `logs` and `cancel` need only that file and a
signal: SIGTERM asks the stage to save its state and stop, SIGINT kills it, and both end the chain.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from jobs.attempts import RunBusyError, living_attempts, start_ticks
from jobs.locks import locked
from jobs.outcomes import Cause, ExitCode, Outcome, read_json, write_json
from jobs.requests import SUPERVISOR_FILE, VISIBLE_GPUS, Request, Stage

_POLL_S = 0.2
_HEARTBEAT_S = 2.0
_REQUEUE_PAUSE_S = 1.0
_LOCK_FILE = "supervisor.lock"


@dataclass
class StageState:
    """How far a stage is: waiting, running, done, failed or cancelled."""

    kind: str
    run: str
    state: str = "waiting"
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    cause: str = ""


def supervise(run_dir: Path) -> int:
    """Run the stages of `request.json` that are not done yet.

    Returns:
        0 if every stage is done, else the exit code of the one that is not; `BUSY` if another
        supervisor owns the run.
    """
    request = Request.load(run_dir)
    if request is None:
        raise FileNotFoundError(f"{run_dir} holds no request.json")
    with ExitStack() as held:
        if not _lock(run_dir, held):
            sys.stderr.write(f"run `{run_dir.name}` has a supervisor already\n")
            return ExitCode.BUSY
        return _Supervisor(run_dir, request).run()


class _Supervisor:
    def __init__(self, run_dir: Path, request: Request) -> None:
        self._run_dir = run_dir
        self._request = request
        self._stages = [StageState(stage.kind, stage.run) for stage in request.stages]
        self._outcome = ""
        self._is_cancelled = False
        self._is_killing = False
        self._last_heartbeat = 0.0
        self._is_told = True  # whether the newest state could be written
        self._told: set[str] = set()  # runs beside the one asked for that hold a `supervisor.json` of this
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._cancel)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def run(self) -> int:
        code = int(ExitCode.DONE)
        self._publish()
        try:
            for stage, state in zip(self._request.stages, self._stages, strict=True):
                with ExitStack() as held:
                    self._wait_for(stage, held)
                    if not self._is_cancelled:
                        code = self._run_stage(stage, state)
                if self._is_cancelled or code != ExitCode.DONE:
                    break
            self._outcome = (
                "cancelled" if self._is_cancelled else "done" if code == ExitCode.DONE else "failed"
            )
        except BaseException:
            self._outcome = "failed"
            raise
        finally:
            # From another machine, a run that is not told of the end is one that runs for ever.
            self._publish(*filter(self._is_ours, self._told))
        return code

    def _wait_for(self, stage: Stage, held: ExitStack) -> None:
        """Own the run of `stage` too, as soon as whoever works on it is through.

        That is another request, or a stage whose supervisor was killed: it notices, and stops by itself.
        """
        run_dir = self._run_dir.parent / stage.run
        is_ours = run_dir == self._run_dir  # owned from the start
        if stage.is_done(run_dir.parent):  # nothing to own, and boxes may be somebody else's
            return
        while not self._is_cancelled:
            is_ours = is_ours or _lock(run_dir, held)
            if is_ours and not _is_worked_on(run_dir):
                return
            self._beat()
            time.sleep(_POLL_S)

    def _run_stage(self, stage: Stage, state: StageState) -> int:
        """Run one stage until it is done, fails or is cancelled; done already counts as done."""
        if stage.is_done(self._run_dir.parent):
            state.state, state.exit_code = "done", ExitCode.DONE
            self._publish()
            return ExitCode.DONE
        state.state, state.started = "running", time.time()
        self._publish(stage.run)
        code = int(ExitCode.REQUEUE)
        while code == ExitCode.REQUEUE and not self._is_cancelled:
            if state.exit_code is not None:
                time.sleep(_REQUEUE_PAUSE_S)
            code = state.exit_code = self._run_child(stage)
        state.ended, state.exit_code = time.time(), code
        if self._is_cancelled and code != ExitCode.DONE:
            state.state, state.cause = "cancelled", Cause.CANCELLED
        else:
            state.state = "done" if code == ExitCode.DONE else "failed"
            state.cause = Outcome.of_exit(code).cause
        self._publish(stage.run)
        return code

    def _run_child(self, stage: Stage) -> int:
        run_dir = self._run_dir.parent / stage.run
        (run_dir / "logs").mkdir(exist_ok=True)
        with (run_dir / "logs" / f"{stage.kind}.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "jobs.base", stage.kind, str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # so that it can be killed with everything it started
            )
        is_told = False
        while True:
            # Looked at on every turn: a cancellation may have come before the child did.
            if self._is_killing:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            elif self._is_cancelled and not is_told:
                child.terminate()
                is_told = True
            try:
                return child.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                self._beat()

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self._is_cancelled = True
        self._is_killing = self._is_killing or number == signal.SIGINT

    def _beat(self) -> None:
        if time.monotonic() - self._last_heartbeat >= _HEARTBEAT_S:
            self._publish()

    def _is_ours(self, run: str) -> bool:
        """Whether no other supervisor has worked on `run` since."""
        try:
            document = read_json(self._run_dir.parent / run / SUPERVISOR_FILE) or {}
        except OSError:  # writing it will tell
            return True
        return (document.get("host"), document.get("pid")) == (socket.gethostname(), os.getpid())

    def _publish(self, *runs: str) -> None:
        """Write `supervisor.json` in the run asked for, and in `runs`."""
        self._told |= {*runs} - {self._run_dir.name}
        self._last_heartbeat = time.monotonic()
        document = {
            "request": self._request.id,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start_ticks": start_ticks(os.getpid()),
            "heartbeat": time.time(),
            "stages": [asdict(state) for state in self._stages],
            "outcome": self._outcome,
        }
        try:
            for name in {self._run_dir.name, *runs}:
                write_json(self._run_dir.parent / name / SUPERVISOR_FILE, document)
            self._is_told = True
        except OSError as error:
            # A full disk does not end the stage: readers look at the process, not at its heartbeat.
            if self._is_told:
                with suppress(OSError):  # the log lies on the same disk
                    sys.stderr.write(f"`{SUPERVISOR_FILE}` is not up to date: {error}\n")
            self._is_told = False


def _lock(run_dir: Path, held: ExitStack) -> bool:
    """Own a run until `held` is closed or this process dies; False if another process owns it."""
    try:
        held.enter_context(locked(run_dir / _LOCK_FILE, wait=False))
    except RunBusyError:
        return False
    return True


def _is_worked_on(run_dir: Path) -> bool:
    """Whether a stage of a run lives on this machine; of other machines only they can tell."""
    return any(attempt.host == socket.gethostname() for attempt in living_attempts(run_dir))


def _environment() -> dict[str, str]:
    """Of a stage: like that of the shell that submitted, where submitit hides every GPU from a local job.

    In an allocation of several nodes it does not name the others, which take no part.
    """
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    for name in ("SLURM_NNODES", "SLURM_NODEID", "SLURM_JOB_NODELIST"):
        environment.pop(name, None)
    visible = environment.pop(VISIBLE_GPUS, "")
    if visible == "all":
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    elif visible:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return environment
