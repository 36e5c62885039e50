"""What watching over a step costs, against the step itself.

After each data step of a real training the calls that watch over it are made once more, on the state of that
moment, and timed: the scan of the state, the verdict on a full window, as often as in a run the digest by
which replicas are compared, and with each digest a line of the ledger, which is more than a run writes.
Adding gradients and numbers of the ranks is left out: training needs that anyway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from jobs.bench.result import Result, one_core
from jobs.bench.step import Timing, make_boxes, setting, whole_step
from jobs.config import Config
from jobs.train import fresh_method, load_batches, make_plan, make_source
from univip.engine.distributed import Group
from univip.engine.reporting import Plan
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer
from univip.optim.groups import make_optimizer
from univip.resilience.guard import Guard, Health
from univip.resilience.ledger import Ledger


class _Spent:
    """Seconds by call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def guard(photographs: Path, *, global_batch: int = 32, data_steps: int = 500) -> Result:
    """Time of the guard, the replica check and the ledger in each data step, against all of its time.

    Args:
        photographs: A data set in COCO's layout with the split `train`, such as that of the demo.
        global_batch: Images of a data step.
        data_steps: Over which the mean is taken.
    """
    spent = _Spent()
    with TemporaryDirectory(prefix="univip-bench-") as folder:
        run_dir = Path(folder)
        config = setting(photographs, global_batch, data_steps)
        plan = make_plan(config, make_boxes(config, run_dir), num_micro_batches=1)
        with one_core():
            steps = [each.seconds for each in _watched(config, run_dir, plan, spent)]
    watching_s = sum(spent.seconds.values()) / data_steps
    return Result(
        name="guard",
        value=1000 * watching_s,
        unit="ms a step",
        reference=1000 * mean(steps),
        reference_name="the whole step",
        ratio=watching_s / mean(steps),
        better="lower",
        details={
            "ms_per_step": {name: 1000 * seconds / data_steps for name, seconds in spent.seconds.items()},
            "data_steps": data_steps,
            "global_batch": global_batch,
        },
    )


def _watched(config: Config, run_dir: Path, plan: Plan, spent: _Spent) -> Iterator[Timing]:
    group = Group()
    method = fresh_method(config, group.device)
    state = TrainState(method, make_optimizer(config.optim, method.online), Guard(config.resilience))
    buffer = GradientBuffer(method.online)
    ledger = Ledger(run_dir / "ledger.jsonl")
    # Another one judges again: a verdict is remembered, and the state must be that of the run.
    other = Guard(config.resilience)
    stream = load_batches(make_source(config, run_dir, group), config, group.device, range(plan.target))
    for done in range(1, plan.target + 1):
        state.data_step = done - 1
        timing, _ = whole_step(state, stream, buffer, plan, group)
        with spent("scan"):
            is_finite = bool(state.norms().finite)
        with spent("verdict"):
            health = Health(state=not is_finite, loss=False, gradient=False)
            other.judge(health, loss=timing.loss, gradient_norm=1.0)
        if done % config.resilience.replica_check_every == 0:
            with spent("replicas"):
                state.digest()
            with spent("ledger"):
                ledger.append("healthy", checkpoint=done)
        yield timing
