"""LARS: momentum SGD whose step is proportional to the length of each weight tensor (You et al. 2017).

For a parameter w with gradient g, trust η, weight decay β, momentum μ:

    ratio = η |w| / (|g| + β |w|)          1 where either length is 0, and in groups with `adapt` off
    v     = μ v + ratio * (g + β w)
    w     = w - lr * v
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling.

    Args:
        groups: Parameter groups; a group with `"adapt": False` is updated as by momentum SGD.
        lr: Learning rate.
        momentum: μ.
        weight_decay: β.
        trust: η.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust: float,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapt": True,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            slopes = [weight.grad for weight in weights]
            updates = torch._foreach_add(slopes, weights, alpha=group["weight_decay"])
            if group["adapt"]:
                torch._foreach_mul_(updates, _ratios(weights, slopes, group["trust"], group["weight_decay"]))
            velocities = [self._velocity(weight) for weight in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, updates)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])

    def _velocity(self, weight: Tensor) -> Tensor:
        """The momentum buffer of a parameter, under the name that `torch.optim.SGD` uses."""
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _ratios(weights: list[Tensor], slopes: list[Tensor], trust: float, weight_decay: float) -> list[Tensor]:
    """Trust ratio of each parameter, left on its device."""
    w = torch.stack(torch._foreach_norm(weights))
    g = torch.stack(torch._foreach_norm(slopes))
    ratios = trust * w / (g + weight_decay * w)
    return list(torch.where((w > 0) & (g > 0), ratios, 1.0).unbind())
