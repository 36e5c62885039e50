"""Training from files to updated networks, against the bare network on the same pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from torch.optim import Optimizer

from jobs import proposals
from jobs.bench.result import Result, one_core
from jobs.config import Config, RunHeader, RunKind, store
from jobs.train import fresh_method, load_batches, make_plan, make_source
from univip.config import (
    Backbone,
    DataConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    ProposalsConfig,
    SearchMode,
    TrainConfig,
    ViewsConfig,
)
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.reporting import Plan
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepSettings, train_step
from univip.engine.trainer import Loaded
from univip.observe import NullObserver
from univip.optim.groups import make_optimizer
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Guard, Verdict
from univip.types import Method, Views


class Timing(NamedTuple):
    """One data step, on one of the two sides."""

    seconds: float
    phases: dict[str, float]  # seconds; they leave out what no phase covers
    loss: float


def step(photographs: Path, *, global_batch: int = 32, data_steps: int = 30, warm_up: int = 5) -> Result:
    """Training from files to updated networks, against the bare network on the same pictures.

    The whole path is that of a run with one rank and no loader processes: plan, decoding, views,
    augmentation, forward, backward, state scan, reduction buffer, guard, optimizer, target. The reference
    takes the tensors that the whole path has just augmented through a second copy of the network: losses,
    backward, stock optimizer, target. Both end with the same loss, which shows that they did the same work.

    Args:
        photographs: A data set in COCO's layout with the split `train`, such as that of the demo.
        global_batch: Images of a data step.
        data_steps: Repetitions, of which the median counts.
        warm_up: Data steps before them that do not count.
    """
    with TemporaryDirectory(prefix="univip-bench-") as folder:
        run_dir = Path(folder)
        config = setting(photographs, global_batch, warm_up + data_steps)
        num_images = make_boxes(config, run_dir)
        plan = make_plan(config, num_images, num_micro_batches=1)
        with one_core():
            start, core_start = time.perf_counter(), time.process_time()
            whole, bare = zip(*islice(_both_sides(config, run_dir, plan), warm_up, None), strict=True)
            core_share = (time.process_time() - core_start) / (time.perf_counter() - start)
    value, reference = (global_batch / median(each.seconds for each in side) for side in (whole, bare))
    return Result(
        name="step",
        value=value,
        unit="images/s",
        reference=reference,
        reference_name="bare network on ready-made tensors",
        ratio=value / reference,
        better="higher",
        details={
            "ms_per_image": _ms_per_image(whole, global_batch),
            "reference_ms_per_image": _ms_per_image(bare, global_batch),
            "last_loss": whole[-1].loss,
            "reference_last_loss": bare[-1].loss,
            "global_batch": global_batch,
            "data_steps": data_steps,
            "core_share": round(core_share, 3),  # well below 1: something else ran on this core
        },
    )


def setting(photographs: Path, global_batch: int, data_steps: int) -> Config:
    """The sizes of the demo, written down here: tuning the demo must not change what is measured."""
    return Config(
        data=DataConfig(root=str(photographs), split="train", workers=0),
        proposals=ProposalsConfig(mode=SearchMode.single, min_sizes=[24, 36]),
        views=ViewsConfig(min_overlap=24, scene_size=64, instance_size=32),
        model=ModelConfig(backbone=Backbone.tiny, hidden_dim=256, embedding_dim=64),
        optim=OptimConfig(warmup_epochs=0),
        train=TrainConfig(
            max_steps=data_steps,
            global_batch=global_batch,
            max_images_per_rank=global_batch,
            precision=Precision.fp32,
        ),
    )


def make_boxes(config: Config, run_dir: Path) -> int:
    """Prepare a run directory to train from; returns the number of images."""
    index = proposals.prepare(config, run_dir)
    for shard in range(proposals.num_shards(config, run_dir)):
        proposals.run_shard(config, run_dir, shard, NullObserver())
    proposals.merge(config, run_dir)
    store(config, RunHeader("bench", RunKind.train, index.fingerprint, len(index)), run_dir)
    return len(index)


def _both_sides(config: Config, run_dir: Path, plan: Plan) -> Iterator[tuple[Timing, Timing]]:
    """Train two copies of the network, data step by data step in turn: the whole path, then the bare one."""
    group = Group()
    method = fresh_method(config, group.device)
    state = TrainState(method, make_optimizer(config.optim, method.online), Guard(config.resilience))
    buffer = GradientBuffer(method.online)
    bare = fresh_method(config, group.device)
    bare_optimizer = make_optimizer(config.optim, bare.online)
    stream = load_batches(make_source(config, run_dir, group), config, group.device, range(plan.target))
    for data_step in range(plan.target):
        state.data_step = data_step
        whole, views = whole_step(state, stream, buffer, plan, group)
        for param_group in bare_optimizer.param_groups:
            param_group["lr"] = plan.learning_rate(data_step)
        yield whole, _bare_step(bare, bare_optimizer, views, plan.momentum(data_step))


def whole_step(
    state: TrainState,
    stream: Generator[Loaded, None, None],
    buffer: GradientBuffer,
    plan: Plan,
    group: Group,
) -> tuple[Timing, Views]:
    """What the trainer does for a data step; also returns the augmented views."""
    made: list[Views] = []

    def keeping(make_views: Callable[[], Views]) -> Callable[[], Views]:
        def make() -> Views:
            made.append(make_views())
            return made[-1]

        return make

    clock = PhaseClock()
    start = time.perf_counter()
    with clock("data"):
        loaded = next(stream)
    report = train_step(
        state,
        [keeping(make_views) for make_views in loaded.micro_batches],
        settings=StepSettings(plan.global_batch, Precision.fp32, PlantedFaults()),
        group=group,
        buffer=buffer,
        learning_rate=plan.learning_rate(loaded.data_step),
        momentum=plan.momentum(loaded.data_step),
        counts=loaded.counts,
        marks=loaded.marks,
        stop_requested=False,
        clock=clock,
    )
    seconds = time.perf_counter() - start
    assert report.judgement.verdict is Verdict.ok, report.judgement
    [views] = made
    return Timing(seconds, clock.seconds, report.loss), views


def _bare_step(method: Method, optimizer: Optimizer, views: Views, momentum: float) -> Timing:
    """The same update as plainly as it can be written; nothing could take it back."""
    clock = PhaseClock()
    start = time.perf_counter()
    optimizer.zero_grad()
    with clock("forward"):
        loss = method.losses(views).total.mean()
    with clock("backward"):
        loss.backward()  # type: ignore[no-untyped-call]
    with clock("optimizer"):
        optimizer.step()
        method.update_target(momentum)
    return Timing(time.perf_counter() - start, clock.seconds, loss.item())


def _ms_per_image(timings: Sequence[Timing], global_batch: int) -> dict[str, float]:
    """Median of each phase, and of what is in none of them."""
    spent = {phase: [each.phases[phase] for each in timings] for phase in timings[0].phases}
    spent["rest"] = [each.seconds - sum(each.phases.values()) for each in timings]
    return {
        phase: round(1000 * median(seconds) / global_batch, 4)
        for phase, seconds in spent.items()
        if any(seconds)
    }
