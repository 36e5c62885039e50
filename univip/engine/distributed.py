"""The ranks of one round as an object: sums, broadcasts of facts, and nothing else.

With one rank every method is a no-op, so the engine has one code path.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes that train together, over torch's default process group."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (a device is immutable)

    @property
    def is_main(self) -> bool:
        """Whether this rank decides and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Add up a tensor over the ranks, in place; every rank ends with the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON value on every rank; the others' argument is ignored."""
        if self.size == 1:
            return value
        data = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(data)], device=self.device)
        dist.broadcast(length, src=0)
        payload = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(payload, src=0)
        return json.loads(bytes(payload.tolist()))
