"""Instance-to-instance correspondence as optimal transport (paper eq. 10 to 12).

The K instances of an image, seen by the online side, are matched with the same K instances seen by the target
side. An instance weighs as much as it agrees with the scenes of the *other* side:

    rows, online instances m:       b_m = max(o_m . (f_t1 + f_t2) / 2, 0)
    columns, target instances n:    a_n = max(t_n . (f_o1 + f_o2) / 2, 0)

and the loss is the cost 1 - cos(o_m, t_n) under the entropic transport plan between b and a, the plan held
constant.

As printed, the two masses differ, so no plan meets both, and they grow with the square of the embeddings'
length, which nothing bounds. `balanced` therefore takes unit vectors and divides each side by its sum: mass
1, loss in [0, 2 * scale]. `paper_literal` keeps the printed form for comparison.

Legend: B images, K instances, D embedding. All in at least fp32, without matrix products (see `regression`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from univip.config import Transport
from univip.errors import ConfigError
from univip.losses.regression import at_least_fp32, cosine, unit

# Added to every balanced weight: where all instances disagree with the scenes they weigh the same, not 0 / 0.
MASS_FLOOR = 1e-3


class InstanceLoss(NamedTuple):
    """Loss of each image and how well the plan met its marginals."""

    loss: Tensor  # [B], carries the gradient
    residual: Tensor  # scalar, detached; largest violation of a marginal in this batch, 0 for an empty one


@torch.no_grad()
def sinkhorn(
    cost: Tensor, row_mass: Tensor, column_mass: Tensor, *, epsilon: float, num_iterations: int
) -> Tensor:
    """Entropic transport plan, by Sinkhorn's iteration on logarithms.

    Logarithms because exp(-cost / epsilon) underflows for small epsilon. The number of iterations is fixed:
    testing for convergence would make the device wait for the host each time. Columns are updated last, so
    their sums are exact and the error left is that of the rows; where the two masses differ, the columns win.

    Args:
        cost: [B, K, K], lower is closer.
        row_mass: [B, K], not negative.
        column_mass: [B, K], not negative.
        epsilon: Weight of the entropy, in units of cost.
        num_iterations: Pairs of row and column updates.

    Returns:
        Plan [B, K, K] in at least fp32, without gradient; see `marginal_residual`.

    Raises:
        ConfigError: If `epsilon` or `num_iterations` is not positive.
    """
    if epsilon <= 0 or num_iterations < 1:
        raise ConfigError(
            "`epsilon` and `num_iterations` of the transport must be positive, "
            f"but are {epsilon} and {num_iterations}.",
            where="method.sinkhorn_epsilon, method.sinkhorn_iterations",
            fix="method.sinkhorn_epsilon=0.1 method.sinkhorn_iterations=50",
        )
    log_kernel = at_least_fp32(cost) / -epsilon
    tiny = torch.finfo(log_kernel.dtype).tiny  # a mass of 0 would become -inf, and -inf - -inf is NaN
    log_rows = at_least_fp32(row_mass).clamp_min(tiny).log()
    log_columns = at_least_fp32(column_mass).clamp_min(tiny).log()
    u = torch.zeros_like(log_rows)
    v = torch.zeros_like(log_columns)
    for _ in range(num_iterations):
        u = log_rows - torch.logsumexp(log_kernel + v[:, None, :], dim=2)
        v = log_columns - torch.logsumexp(log_kernel + u[:, :, None], dim=1)
    return torch.exp(log_kernel + u[:, :, None] + v[:, None, :])


def marginal_residual(plan: Tensor, row_mass: Tensor, column_mass: Tensor) -> Tensor:
    """Largest violation of a row or column mass over the batch; a scalar, 0 for an empty batch."""
    if plan.shape[0] == 0:
        return plan.new_zeros(())
    rows = (plan.sum(dim=2) - row_mass).abs().max()
    columns = (plan.sum(dim=1) - column_mass).abs().max()
    return torch.maximum(rows, columns)


def instance_loss(
    online: Tensor,
    target: Tensor,
    online_scenes: Tensor,
    target_scenes: Tensor,
    *,
    transport: Transport,
    epsilon: float,
    num_iterations: int,
    scale: float,
) -> InstanceLoss:
    """Loss between the instances of an image as both sides see them.

    Args:
        online: [B, K, D] online instances o_m (rows), carry the gradient.
        target: [B, K, D] target instances t_n (columns).
        online_scenes: [B, 2, D] the two scenes f_o1, f_o2.
        target_scenes: [B, 2, D] the two scenes f_t1, f_t2.
        transport: Balanced or as printed.
        epsilon: Weight of the entropy, in units of cost.
        num_iterations: Sinkhorn iterations.
        scale: The same factor as in `cosine_loss`.

    Returns:
        scale * (1 - sum of plan * cos), the 1 being the mass; `paper_literal`: -scale * sum of plan * cos
        (eq. 12).
    """
    similarity = cosine(online[:, :, None, :], target[:, None, :, :])
    with torch.no_grad():
        row_mass = _masses(online, target_scenes, transport)
        column_mass = _masses(target, online_scenes, transport)
        plan = sinkhorn(
            1.0 - similarity, row_mass, column_mass, epsilon=epsilon, num_iterations=num_iterations
        )
        residual = marginal_residual(plan, row_mass, column_mass)
    agreement = (plan * similarity).sum(dim=(1, 2))
    if transport is Transport.paper_literal:
        return InstanceLoss(-scale * agreement, residual)
    return InstanceLoss(scale * (1.0 - agreement), residual)


def _masses(instances: Tensor, scenes: Tensor, transport: Transport) -> Tensor:
    """Weights [B, K] of the instances of one side by the scenes of the other (eq. 11)."""
    if transport is Transport.paper_literal:
        scene = at_least_fp32(scenes).mean(dim=1, keepdim=True)
        return (at_least_fp32(instances) * scene).sum(dim=-1).relu()
    scene = unit(scenes).mean(dim=1, keepdim=True)
    weights = (unit(instances) * scene).sum(dim=-1).relu() + MASS_FLOOR
    return weights / weights.sum(dim=-1, keepdim=True)
