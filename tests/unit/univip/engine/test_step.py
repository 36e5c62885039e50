"""One step in one process: micro-batches, and what the report says."""

from __future__ import annotations

import functools

import pytest
import torch

from univip.config import (
    Backbone,
    MethodConfig,
    ModelConfig,
    OptimConfig,
    Precision,
    ResilienceConfig,
    ViewsConfig,
)
from univip.engine.distributed import Group
from univip.engine.phases import PHASES, PhaseClock
from univip.engine.sample_log import Marks
from univip.engine.state import TrainState
from univip.engine.step import GradientBuffer, StepReport, StepSettings, train_step
from univip.methods.build import make_method
from univip.models.norm import commit_statistics
from univip.optim.groups import make_optimizer
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Guard, Verdict
from univip.types import Views

IMAGES = 6
PARTS = ((0, 4), (4, 6))


def part(start: int, stop: int) -> Views:
    generator = torch.Generator().manual_seed(5)
    scenes = torch.randn(IMAGES, 2, 3, 32, 32, generator=generator, dtype=torch.float64)
    instances = torch.randn(2, IMAGES, 2, 3, 16, 16, generator=generator, dtype=torch.float64)
    views = Views(scenes, instances[0], instances[1], torch.arange(IMAGES) != 1)
    return Views(*(field[start:stop] for field in views))


def fresh() -> TrainState:
    torch.manual_seed(2)
    model = ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8)
    method = make_method(MethodConfig(), model, ViewsConfig(num_instances=2))
    method.online.double()
    method.target.double()
    return TrainState(method, make_optimizer(OptimConfig(), method.online), Guard(ResilienceConfig()))


def step(
    state: TrainState, *, precision: Precision = Precision.fp32, clock: PhaseClock | None = None
) -> StepReport:
    return train_step(
        state,
        [functools.partial(part, *borders) for borders in PARTS],
        settings=StepSettings(IMAGES, precision, PlantedFaults()),
        group=Group(),
        buffer=GradientBuffer(state.method.online),
        learning_rate=0.1,
        momentum=0.9,
        counts={"too_small": 1},
        marks=Marks(1, 2),
        stop_requested=False,
        clock=clock or PhaseClock(),
    )


def test_micro_batches_add_up_to_the_gradient_of_the_mean_over_the_global_batch() -> None:
    state, by_hand = fresh(), fresh()
    total = 0.0
    for borders in PARTS:
        loss = by_hand.method.losses(part(*borders)).total.sum() / IMAGES
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    by_hand.optimizer.param_groups[0]["lr"] = 0.1
    by_hand.optimizer.step()
    commit_statistics(by_hand.method.online)
    by_hand.method.update_target(0.9)
    commit_statistics(by_hand.method.target)

    report = step(state)

    assert report.judgement.verdict is Verdict.ok
    assert report.loss == pytest.approx(total, rel=1e-12)
    assert sum(report.terms.values()) == pytest.approx(total, rel=1e-12)
    for name, value in by_hand.tensors().items():
        torch.testing.assert_close(state.tensors()[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_the_gradient_norm_is_that_of_all_gradients_before_the_step() -> None:
    state, by_hand = fresh(), fresh()
    for borders in PARTS:
        (by_hand.method.losses(part(*borders)).total.sum() / IMAGES).backward()  # type: ignore[no-untyped-call]
    squares = [
        parameter.grad.square().sum()
        for parameter in by_hand.method.online.parameters()
        if parameter.grad is not None
    ]

    report = step(state)

    assert report.gradient_norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-12)


def test_every_phase_of_a_step_is_timed_under_a_known_name() -> None:
    clock = PhaseClock()

    step(fresh(), clock=clock)

    assert set(clock.seconds) == set(PHASES)
    assert all(clock.seconds[name] > 0 for name in ("augment", "forward", "backward", "reduce", "optimizer"))


def test_a_step_in_bf16_is_close_to_the_one_in_fp32() -> None:
    full, half = fresh(), fresh()
    for state in (full, half):
        state.method.online.float()
        state.method.target.float()
    views = part(0, IMAGES)
    views = Views(*(field.float() if field.is_floating_point() else field for field in views))

    reports = [
        train_step(
            state,
            [lambda: views],
            settings=StepSettings(IMAGES, precision, PlantedFaults()),
            group=Group(),
            buffer=GradientBuffer(state.method.online),
            learning_rate=0.1,
            momentum=0.9,
            counts={},
            marks=Marks(1, 2),
            stop_requested=False,
            clock=PhaseClock(),
        )
        for state, precision in ((full, Precision.fp32), (half, Precision.bf16))
    ]

    assert [report.judgement.verdict for report in reports] == [Verdict.ok, Verdict.ok]
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=0.05)
    assert reports[1].loss != reports[0].loss
    # The master weights stay fp32.
    assert all(value.dtype is torch.float32 for value in half.tensors().values() if value.is_floating_point())
