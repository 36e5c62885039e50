"""The target network follows the online one: an exponential moving average of its parameters.

Only parameters are averaged. The target runs in training mode on the statistics of its own batches, and its
buffers are those statistics.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def target_momentum(data_step: int, *, total_data_steps: int, base: float) -> float:
    """Momentum at a data step: `base` at the first, 1 at the end, along a cosine.

    Args:
        data_step: Position in the run, from 0.
        total_data_steps: Where the run ends; the target stands still from there on.
        base: Momentum at data step 0.
    """
    progress = min(data_step / total_data_steps, 1.0)
    return 1.0 - (1.0 - base) * (math.cos(math.pi * progress) + 1.0) / 2.0


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, *, momentum: float) -> None:
    """Move every parameter of the target: momentum * target + (1 - momentum) * online.

    Args:
        target: Moved in place; each of its parameters has a namesake in `online`.
        online: May hold more (the predictor), which is left alone.
        momentum: Of the target; 1 leaves it where it is.
    """
    followed = dict(online.named_parameters())
    names, followers = zip(*target.named_parameters(), strict=True)
    torch._foreach_lerp_(list(followers), [followed[name] for name in names], 1.0 - momentum)
