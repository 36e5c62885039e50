"""The copy of the training state in host memory: what is written, and what a rollback may take back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from univip.checkpoint.layout import Manifest


class Held(NamedTuple):
    """The state of a checkpoint that is on the disk, in host memory still."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    sums: dict[str, int]  # of their bits, before they were written


def to_host(tensors: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory, independent of the originals; in the buffers where they fit."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        copy = buffers.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
    if any(tensor.is_cuda for tensor in tensors.values()):
        torch.cuda.synchronize()
    return copies
