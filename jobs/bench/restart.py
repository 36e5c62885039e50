"""From the death of a worker to the next step, against the torchrun command.

Ours is a small run of the real training job: two ranks on gloo, a checkpoint every third step. One rank gets
SIGKILL; the clock stops at the first step of the new round, which has looked for the newest checkpoint,
verified and loaded it. Steps that were lost are computed again later and are counted, not timed.

The reference is `restart_reference.py`, a loop with a much smaller network that checks nothing, under
`python -m torch.distributed.run` with two ranks and the same kill. Its agent may not share its store with the
workers (TORCH_DISABLE_SHARE_RDZV_TCP_STORE), for with that default it often needs several restarts.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from jobs.bench import restart_reference
from jobs.bench.result import Result
from jobs.drill.job import Job, newest_checkpoint, records
from jobs.drill.lab import Lab, steps_of
from jobs.drill.processes import new_run, seconds_to_next_round
from univip.errors import UnivipError

_REFERENCE_KILLS = 3  # of one start of the command, by its option
_MONITOR_S = 0.1
_AFTER_S = 0.4  # a kill comes at a random moment of that many seconds after a new checkpoint
_TIMEOUT_S = 120.0
_POLL_S = 0.01


def restart(photographs: Path, *, kills: int = 5, repetitions: int = 2) -> Result:
    """Seconds from SIGKILL of a worker to the next good step.

    Args:
        photographs: A data set in COCO's layout with the split `train`, such as that of the demo.
        kills: In one run of ours.
        repetitions: Runs of each side, in turn.
    """
    ours: list[float] = []
    theirs: list[float] = []
    again = 0
    with TemporaryDirectory(prefix="univip-bench-") as name:
        lab = Lab(Path(name), photographs)
        for number in range(repetitions):
            run_dir = new_run(lab, "restart", "cluster.workers_per_node=2", "train.max_steps=100000")
            ours += _kill_ranks(run_dir, kills, random.Random(number))
            steps = steps_of(records(run_dir))
            again += len(steps) - len({step.done for step in steps})
            folder = Path(name) / f"reference-{number}"
            folder.mkdir()
            theirs += _kill_torchrun(folder)
    value, reference = median(ours), median(theirs)
    return Result(
        name="restart",
        value=value,
        unit="s",
        reference=reference,
        reference_name="the torchrun command",
        ratio=value / reference,
        better="lower",
        details={
            "p95_s": round(_p95(ours), 3),
            "reference_p95_s": round(_p95(theirs), 3),
            "kills": len(ours),
            "reference_kills": len(theirs),
            "steps_again_per_kill": again / len(ours),
        },
    )


def _kill_ranks(run_dir: Path, kills: int, draws: random.Random) -> list[float]:
    moments: list[float] = []
    with Job(run_dir) as job:
        for number in range(kills + 1):
            job.until(partial(_has_stepped, run_dir, number), f"a step of round {number}")
            if number < kills:
                job.until(partial(_has_newer, run_dir, newest_checkpoint(run_dir)), "a new checkpoint")
                time.sleep(draws.uniform(0, _AFTER_S))
                moments.append(time.time())
                os.kill(job.ranks()[draws.randrange(2)], signal.SIGKILL)
    return seconds_to_next_round(steps_of(records(run_dir)), moments)


def _has_stepped(run_dir: Path, number: int) -> bool:
    return any(step.round[1] == number for step in steps_of(records(run_dir)))


def _has_newer(run_dir: Path, data_step: int) -> bool:
    return newest_checkpoint(run_dir) > data_step


def _kill_torchrun(folder: Path) -> list[float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--max-restarts={_REFERENCE_KILLS}", f"--monitor-interval={_MONITOR_S}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # any free port
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*command, str(Path(restart_reference.__file__)), str(folder)],
            env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        seconds = []
        _until(partial(_steps, folder, 0), folder)
        for number in range(_REFERENCE_KILLS):
            time.sleep((restart_reference.SAVE_EVERY + 1) * restart_reference.STEP_S)
            victim = int((folder / f"pid-{number}-{number % 2}").read_text(encoding="utf-8"))
            moment = time.time()
            os.kill(victim, signal.SIGKILL)
            seconds.append(_until(partial(_steps, folder, number + 1), folder)[0] - moment)
        return seconds
    finally:
        process.terminate()  # it ends its workers
        with suppress(subprocess.TimeoutExpired):
            process.wait(_TIMEOUT_S)
        process.kill()


def _steps(folder: Path, number: int) -> list[float]:
    """When the steps of one start of the workers were done."""
    path = folder / restart_reference.STEPS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [float(line.split()[0]) for line in lines if int(line.split()[1]) == number]


def _until(condition: Callable[[], Any], folder: Path) -> Any:
    deadline = time.monotonic() + _TIMEOUT_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            output = (folder / "output").read_text(encoding="utf-8", errors="replace")
            raise UnivipError(f"torchrun made no step in {_TIMEOUT_S:.0f} s: {output[-2000:]}")
        time.sleep(_POLL_S)
    return value


def _p95(values: list[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
