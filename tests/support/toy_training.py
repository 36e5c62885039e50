"""A training of a tiny network on synthetic views in one process, and a death that nothing may catch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import torch

from univip.checkpoint import layout
from univip.checkpoint.manager import CheckpointManager, Origin
from univip.config import (
    Backbone,
    CheckpointConfig,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    ResilienceConfig,
    ViewsConfig,
)
from univip.engine.distributed import Group
from univip.engine.reporting import Plan, Totals
from univip.engine.sample_log import Marks, SampleLog
from univip.engine.state import TrainState
from univip.engine.step import StepSettings
from univip.engine.trainer import Loaded, Trainer
from univip.methods.build import make_method
from univip.optim.groups import make_optimizer
from univip.resilience.anomaly import Capsules
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Guard
from univip.resilience.ledger import Ledger
from univip.types import Views

TARGET = 12
IMAGES = 6


class Killed(BaseException):
    """Stands for a death that nothing may catch."""


class Events:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def record(self, kind: str, **fields: object) -> None:
        self.events.append((kind, fields))

    def of(self, kind: str) -> list[dict[str, object]]:
        return [fields for name, fields in self.events if name == kind]


def views_of(data_step: int) -> Views:
    generator = torch.Generator().manual_seed(data_step)
    scenes = torch.randn(IMAGES, 2, 3, 32, 32, generator=generator)
    instances = torch.randn(2, IMAGES, 2, 3, 16, 16, generator=generator)
    has_instances = torch.arange(IMAGES) != data_step % IMAGES
    return Views(scenes, instances[0], instances[1], has_instances)


def batches(*, die_at: int = -1) -> Callable[[Iterable[int]], Generator[Loaded, None, None]]:
    def stream(data_steps: Iterable[int]) -> Generator[Loaded, None, None]:
        for data_step in data_steps:
            if data_step == die_at:
                raise Killed
            marks = Marks(1000 + data_step, 2**63 + data_step)
            yield Loaded(data_step, [lambda step=data_step: views_of(step)], {"too_small": 1}, marks=marks)

    return stream


def make_trainer(
    run_dir: Path,
    *,
    plant: str = "",
    die_at: int = -1,
    every_steps: int = 2,
    stop_requested: Callable[[], bool] = lambda: False,
    max_rollbacks: int = 3,
    max_consecutive_skips: int = 2,
    skip_window_steps: int = 2,
    healthy_after_steps: int = 2,
    events: Events | None = None,
    **resilience: Any,
) -> Trainer:
    torch.manual_seed(0)
    method = make_method(
        MethodConfig(),
        ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8),
        ViewsConfig(num_instances=2),
    )
    events = events or Events()
    limits = ResilienceConfig(
        healthy_after_steps=healthy_after_steps,
        max_consecutive_skips=max_consecutive_skips,
        skip_window_steps=skip_window_steps,
        max_rollbacks=max_rollbacks,
        **resilience,
    )
    state = TrainState(method, make_optimizer(OptimConfig(), method.online), Guard(limits))
    manager = CheckpointManager(run_dir / "checkpoints", observer=events)
    return Trainer(
        state,
        Plan(TARGET, lambda _: 0.05, lambda _: 0.9, IMAGES, micro_batches=1, every_steps=2),
        batches(die_at=die_at),
        StepSettings(IMAGES, Precision.fp32, PlantedFaults(plant, markers=run_dir / "planted")),
        group=Group(),
        manager=manager,
        ledger=Ledger(run_dir / "ledger.jsonl"),
        samples=SampleLog(run_dir / "samples.bin"),
        checkpoint=CheckpointConfig(every_steps=every_steps),
        resilience=limits,
        observer=events,
        stop_requested=stop_requested,
        origin=Origin(),
        totals=Totals(),
        capsules=Capsules(run_dir / "anomalies", manager, events, limit=limits.max_capsules, place={}),
    )


def digest(run_dir: Path) -> str:
    manager = CheckpointManager(run_dir / "checkpoints")
    assert manager.latest() == TARGET
    return layout.digest(manager.path(TARGET))
