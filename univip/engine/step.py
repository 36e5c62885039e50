"""One step: forward, backward, one reduction, one verdict, and only then any change.

Gradients of all ranks and the few numbers the verdict needs travel in one flat buffer laid out by parameter
order, so the order of additions never depends on how long a process has lived (buckets that are rebuilt after
the first backward make a resumed run differ from an uninterrupted one). Every rank holds a contiguous slice
of the global batch; losses are per image and divided by the global batch, so the sum over ranks and
micro-batches is the gradient of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from univip.config import Precision
from univip.data.marks import from_sums, to_bytes
from univip.engine.distributed import Group
from univip.engine.phases import PhaseClock
from univip.engine.sample_log import Marks
from univip.engine.state import TrainState
from univip.models.norm import commit_statistics, discard_statistics
from univip.resilience.faults import PlantedFaults
from univip.resilience.guard import Health, Judgement, Verdict
from univip.types import LossTerms, Views


class StepReport(NamedTuple):
    """What one step did; losses are means over the global batch."""

    judgement: Judgement
    calm: bool  # in fp32, with the gradient clipped
    loss: float
    terms: dict[str, float]
    gradient_norm: float
    statistics: dict[str, float]  # of this rank's last micro-batch, and norms of the state before the step
    counts: dict[str, float]  # summed over ranks
    marks: Marks  # of all ranks
    stop_requested: bool
    own: dict[str, float]  # loss and terms of this rank's images alone, still over the global batch
    paces: list[float]  # s, of each rank: its own work in the step before, 0 in the first


class StepSettings(NamedTuple):
    """What stays the same from step to step."""

    global_batch: int
    precision: Precision
    faults: PlantedFaults


class GradientBuffer:
    """Gradients of a module in one flat tensor, in the order of its parameters, and a tail of numbers."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)

    def reduce(self, group: Group, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Sum gradients and tail over the ranks and give every parameter its slice of the result.

        Args:
            group: The ranks.
            tail: [T] numbers to be summed along.

        Returns:
            All gradients [size] and the tail [T], equal on every rank.
        """
        first = self.parameters[0]
        flat = torch.zeros(self.size + tail.numel(), dtype=first.dtype, device=first.device)
        offset = 0
        for parameter in self.parameters:
            if parameter.grad is not None:
                flat[offset : offset + parameter.numel()].copy_(parameter.grad.view(-1))
            parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()
        flat[offset:].copy_(tail)
        group.sum_(flat)
        return flat[:offset], flat[offset:]


def train_step(
    state: TrainState,
    micro_batches: Sequence[Callable[[], Views]],
    *,
    settings: StepSettings,
    group: Group,
    buffer: GradientBuffer,
    learning_rate: float,
    momentum: float,
    counts: dict[str, int],
    marks: Marks,
    stop_requested: bool,
    clock: PhaseClock,
    calm: bool = False,
) -> StepReport:
    """Train on one global batch, or decide not to.

    Args:
        state: Changed only under the verdict OK, except for `guard` and the gradients.
        micro_batches: This rank's share; each call yields the augmented views of one micro-batch.
        settings: Batch size, precision, planted faults.
        group: The ranks.
        buffer: Of `state.method.online`.
        learning_rate: For this data step.
        momentum: Of the target, for this data step.
        counts: Numbers of this rank to be summed over ranks.
        marks: Of this rank's samples.
        stop_requested: Whether this rank was asked to stop.
        clock: Gets the phases of the step.
        calm: Compute in fp32, and clip the gradient to its usual norm.

    Returns:
        The report, with the same judgement, loss, counts and stop flag on every rank.
    """
    online = state.method.online
    clock.pace.begin(group.device)
    settings.faults.begin(state.data_step, state.method, state.optimizer)
    for parameter in buffer.parameters:
        parameter.grad = None
    norms = state.norms()

    if calm:
        settings = settings._replace(precision=Precision.fp32)
    total, terms, statistics = _forward_backward(state, micro_batches, settings, clock)
    statistics |= {"norm_parameters": norms.parameters, "norm_buffers": norms.buffers}
    settings.faults.gradient(online)
    paces = [0.0] * group.size
    paces[group.rank] = clock.pace.end(next(reversed(clock.recent["data"]), 0.0))

    with clock("reduce"), torch.no_grad():
        numbers = [total, *terms.values(), ~norms.finite, ~torch.isfinite(total)]
        tail = torch.stack([number.detach().to(total) for number in numbers])
        pieces = [piece for mark in marks for piece in to_bytes(mark)]
        extra = torch.tensor([float(stop_requested), *pieces, *counts.values(), *paces], dtype=tail.dtype)
        gradients, reduced = buffer.reduce(group, torch.cat([tail, extra.to(tail.device)]))
        gradient_norm = torch.linalg.vector_norm(gradients)
        # The only read of the device in a step.
        own = [value.to(reduced) for value in (gradient_norm, *statistics.values())]
        values = torch.cat([reduced, torch.stack(own)]).tolist()
    size = 1 + len(terms)
    end = len(reduced)
    losses, (bad_states, bad_losses, stops), norm = values[:size], values[size : size + 3], values[end]
    rest = values[size + 3 : end]
    pieces, sums, paces = rest[: len(pieces)], rest[len(pieces) : -group.size], rest[-group.size :]
    usual_norm = state.guard.usual_gradient_norm
    health = Health(state=bad_states > 0, loss=bad_losses > 0, gradient=not _is_finite(norm))
    judgement = state.guard.judge(health, loss=losses[0], gradient_norm=norm)
    with clock("optimizer"):
        if judgement.verdict is Verdict.ok:
            if calm and usual_norm is not None and norm > usual_norm:
                gradients.mul_(usual_norm / norm)
            for param_group in state.optimizer.param_groups:
                param_group["lr"] = learning_rate
            state.optimizer.step()
            commit_statistics(online)
            state.method.update_target(momentum)
            commit_statistics(state.method.target)
            state.step += 1
        else:
            discard_statistics(online)
            discard_statistics(state.method.target)
    is_applied = judgement.verdict is Verdict.ok
    return StepReport(
        judgement=judgement,
        calm=calm,
        loss=losses[0],
        terms=dict(zip(terms, losses[1:], strict=True)),
        gradient_norm=norm,
        statistics=dict(zip(statistics, values[end + 1 :], strict=True)),
        counts=dict(zip(counts, sums, strict=True)),
        marks=Marks(from_sums(pieces[:8]), from_sums(pieces[8:])),
        stop_requested=stops > 0,
        # Read from the device only where somebody will look at it.
        own={} if is_applied else dict(zip(["loss", *terms], tail[:size].tolist(), strict=True)),
        paces=paces,
    )


def _forward_backward(
    state: TrainState, micro_batches: Sequence[Callable[[], Views]], settings: StepSettings, clock: PhaseClock
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Accumulate gradients over the micro-batches: sums over this rank's images, over the global batch."""
    total: Tensor | None = None
    terms: dict[str, Tensor] = {}
    statistics: dict[str, Tensor] = {}
    for make_views in micro_batches:
        with clock("augment"):
            views = make_views()
            views = views._replace(scenes=settings.faults.image(views.scenes))
        with clock("forward"):
            losses = _losses(state, views, settings.precision)
            loss = settings.faults.loss(losses.total.sum() / settings.global_batch)
        with clock("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
        for name, value in losses.terms.items():
            share = value.detach().sum() / settings.global_batch
            terms[name] = terms[name] + share if name in terms else share
        statistics = losses.statistics
    assert total is not None, "a rank holds at least one micro-batch"
    return total, terms, statistics


def _losses(state: TrainState, views: Views, precision: Precision) -> LossTerms:
    if precision is Precision.bf16:
        with torch.autocast(views.scenes.device.type, dtype=torch.bfloat16):
            return state.method.losses(views)
    return state.method.losses(views)


def _is_finite(value: float) -> bool:
    return value - value == 0.0
