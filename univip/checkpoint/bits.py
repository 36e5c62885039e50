"""Sums of the bits of tensors, as integers: whether two copies are the same, far faster than by a SHA-256.

Sums are taken modulo 2^(bits of an element), so that nothing is widened on the way. A flipped bit changes
its sum by a smaller power of two, and so always.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element


def sums_of_bits(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The sum of each tensor's elements, their bits read as integers; one host sync for all of them."""
    filled = {name: value for name, value in tensors.items() if value.numel()}
    sums = [_sum(value) for value in filled.values()]
    return dict(zip(filled, torch.stack(sums).tolist(), strict=True)) if sums else {}


def _sum(tensor: Tensor) -> Tensor:
    kind = _INTEGERS[tensor.element_size()]
    return tensor.detach().contiguous().view(kind).sum(dtype=kind).to(torch.int64)
