"""Batch normalisation over every rank, with statistics that can be taken back.

Two needs that `torch.nn` does not meet together. First, one code path for NCCL, gloo and a single process
(`torch.nn.SyncBatchNorm` refuses CPU tensors), exact for uneven slices and for a rank that holds no row at
all. Second, a training forward does not touch the buffers: it writes to a pending copy, which
`commit_statistics` makes permanent together with the optimizer step and `discard_statistics` drops, so that a
skipped step leaves no trace.

Each rank reduces its rows to count, mean and sum of squares about its own mean (no difference of large sums);
the ranks gather these, and everybody combines them in rank order by Chan's formula. All ranks thus compute
the same expression on the same numbers and get the same bits, whatever algorithm the backend uses. One gather
per forward, one per backward.

Every rank must run the same forwards in the same order; a rank without rows passes an input with zero rows.
The gradients of weight and bias are those of this rank's rows: the engine sums them over ranks like all
others.

Legend: n rows, C channels, ... spatial dimensions, N = rows * spatial positions over all ranks, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from univip.waiting import waiting

EPS = 1e-5  # added to the variance
MOMENTUM = 0.1  # weight of one forward in the running statistics


class SynchronizedBatchNorm(nn.Module):
    """Batch normalisation of [n, C, ...] over the default process group, if there is one.

    Parameters and buffers carry the names of `torch.nn.BatchNorm2d`, so the state dict loads there. In
    evaluation mode the buffers are used. In training mode the batch is, also under `torch.no_grad` (the
    target network). A channel with a single value (N = 1) normalises to its bias and passes no gradient.

    Args:
        num_features: C.
    """

    running_mean: Tensor  # [C]
    running_var: Tensor  # [C], unbiased
    num_batches_tracked: Tensor  # int64 scalar

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None  # not buffers: never saved

    def extra_repr(self) -> str:
        """Number of channels, for `print(model)`."""
        return str(self.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [n, C, ...]; the result has the shape and dtype of the input."""
        if not self.training:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=EPS
            )
        with torch.no_grad():
            count, mean, squares = _combine(_gather(_moments(x)))
            divisor = count.clamp_min(1)
            self._follow(count, mean, squares / (count - 1).clamp_min(1))
        normalised: Tensor = _Normalise.apply(x, self.weight, self.bias, mean, squares / divisor, divisor)
        return normalised

    def commit(self) -> None:
        """Make the statistics of the forwards since the last commit permanent."""
        if self._pending is not None:
            for buffer, pending in zip(self._statistics(), self._pending, strict=True):
                buffer.copy_(pending)
            self._pending = None

    def discard(self) -> None:
        """Forget the statistics of the forwards since the last commit."""
        self._pending = None

    def _statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.running_mean, self.running_var, self.num_batches_tracked

    def _follow(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the pending statistics towards a batch; a batch without rows on any rank changes nothing."""
        old_mean, old_variance, batches = self._pending or self._statistics()
        has_rows = count > 0
        weight = has_rows.to(mean.dtype) * MOMENTUM
        self._pending = (
            torch.lerp(old_mean, mean, weight),
            torch.lerp(old_variance, variance, weight),
            batches + has_rows,
        )


def commit_statistics(module: nn.Module) -> None:
    """Make the statistics seen by every normalisation in `module` since the last commit permanent."""
    for norm in _norms(module):
        norm.commit()


def discard_statistics(module: nn.Module) -> None:
    """Drop them instead: every buffer keeps the bytes it had."""
    for norm in _norms(module):
        norm.discard()


def _norms(module: nn.Module) -> Iterator[SynchronizedBatchNorm]:
    return (child for child in module.modules() if isinstance(child, SynchronizedBatchNorm))


def _channel_view(vector: Tensor, like: Tensor) -> Tensor:
    """A vector [C] shaped to broadcast along dimension 1 of `like`."""
    return vector.view(1, -1, *[1] * (like.ndim - 2))


def _moments(x: Tensor) -> Tensor:
    """Count, mean and sum of squares about the mean of this rank, as one vector [1 + 2 C] in at least fp32.

    Two passes over the data: sound for a mean far from zero, and several times faster on a CPU than
    `torch.var_mean`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    channels = x.shape[1]
    if x.numel() == 0:
        return wide.new_zeros(1 + 2 * channels)
    dims = [0, *range(2, x.ndim)]
    mean = wide.mean(dim=dims)
    squares = (wide - _channel_view(mean, x)).square_().sum(dim=dims)
    return torch.cat([wide.new_full((1,), x.numel() // channels), mean, squares])


def _gather(row: Tensor) -> Tensor:
    """The vectors of all ranks, in rank order: [W, len(row)]."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return row[None]
    rows = row.new_empty(dist.get_world_size() * row.shape[0])
    with waiting(row.device):
        dist.all_gather_into_tensor(rows, row)
    return rows.view(-1, row.shape[0])


def _combine(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count [], mean [C] and sum of squares about it [C] of the union of W batches (Chan's formula)."""
    counts = moments[:, :1]
    means, squares = moments[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count.clamp_min(1)
    return count, mean, (squares + counts * (means - mean).square()).sum(dim=0)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * weight + bias, where mean and std are functions of the rows of all ranks.

    With g the gradient of the output, x̂ the normalised input and averages over all N values of a channel:
    dx = weight / std * (g - avg(g) - x̂ avg(g x̂)).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=EPS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, mean, variance, count = ctx.saved_tensors
        if x.numel() == 0:
            along_x = along_one = torch.zeros_like(mean)
        else:  # the fused reduction behind batch_norm: sums of g x̂ and of g over this rank
            _, along_x, along_one = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, EPS, [False, True, True]
            )
        sums = _gather(torch.cat([along_x, along_one])).sum(dim=0)
        average_x, average_one = (sums / count).chunk(2)
        slope = weight * torch.rsqrt(variance + EPS)
        centre = F.batch_norm(
            x, mean, variance, -slope * average_x, -slope * average_one, training=False, eps=EPS
        )
        dx = torch.addcmul(centre, gradient, _channel_view(slope, x)).to(x.dtype)
        return dx, along_x, along_one, None, None, None
