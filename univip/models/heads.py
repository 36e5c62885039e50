"""The projector and predictor of BYOL: one hidden layer, no normalisation at the output.

The last layer has no bias, the first has one, and both start from Kaiming's fan-in distribution, as in BYOL
on COCO.
"""

from __future__ import annotations

from torch import nn

from univip.models.norm import SynchronizedBatchNorm


def make_head(input_dim: int, hidden_dim: int, output_dim: int) -> nn.Sequential:
    """Linear, normalisation, ReLU, Linear: [n, input_dim] to [n, output_dim]."""
    first = nn.Linear(input_dim, hidden_dim)
    last = nn.Linear(hidden_dim, output_dim, bias=False)
    for layer in (first, last):
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, SynchronizedBatchNorm(hidden_dim), nn.ReLU(inplace=True), last)
