"""Regression of one embedding onto another along the cosine.

The paper writes a term as -cos, BYOL as 2 - 2 cos. The two differ by a factor of the learning rate, so the
factor is an explicit `scale` here and every term of every method uses the same one: scale * (1 - cos), which
is 0 at agreement.

Everything is computed in at least fp32, whatever the autocast state: only elementwise products and sums are
used, which neither autocast nor TF32 lowers.

Legend: D embedding; leading dimensions are free and are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A network can put out exactly zero (dead units); below this length a vector is scaled by 1 / EPSILON instead
# of being divided by its length, so value and gradient stay finite.
EPSILON = 1e-6


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in float64 if it is float64 already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., D] divided by their length, in at least fp32; a zero vector stays zero."""
    return F.normalize(at_least_fp32(vectors), dim=-1, eps=EPSILON)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity along the last dimension, in at least fp32; broadcasts the others."""
    return (unit(first) * unit(second)).sum(dim=-1)


def cosine_loss(prediction: Tensor, target: Tensor, *, scale: float) -> Tensor:
    """Distance between the directions of a prediction and its target (paper eq. 4 and 8, shifted by `scale`).

    Args:
        prediction: [..., D], carries the gradient.
        target: [..., D], already detached by the caller.
        scale: 2 gives BYOL's 2 - 2 cos.

    Returns:
        [...] in [0, 2 * scale].
    """
    return scale * (1.0 - cosine(prediction, target))
