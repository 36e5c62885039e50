"""The ranks of one round as an object: sums, and facts told to all.

With one rank every method is a no-op, so the engine has one code path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SMALL_BYTES = 1 << 20  # tensors below it travel together: a message costs more than their bytes


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

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors by name on every rank, each written over the rank's own of that name and kind."""
        if self.size == 1:
            return dict(tensors)
        received = {}
        kinds = {name: _kind(tensor) for name, tensor in tensors.items()}
        for name, kind in self.broadcast(kinds).items():
            mine = tensors.get(name)
            if mine is None or _kind(mine) != kind:
                dtype, shape = kind
                mine = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            received[name] = mine
        small: dict[torch.dtype, list[Tensor]] = {}
        for tensor in received.values():
            if tensor.nbytes < _SMALL_BYTES:
                small.setdefault(tensor.dtype, []).append(tensor)
            else:
                dist.broadcast(tensor, src=0)
        for tensors_of_kind in small.values():
            flat = torch.cat([tensor.view(-1) for tensor in tensors_of_kind])
            dist.broadcast(flat, src=0)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors_of_kind])
            for tensor, part in zip(tensors_of_kind, parts, strict=True):
                tensor.view(-1).copy_(part)
        return received

    def gather(self, value: Any) -> list[Any]:
        """Every rank's JSON value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        lengths = self._gather_rows(torch.tensor([len(data)], device=self.device)).view(-1).tolist()
        row = torch.zeros(max(lengths), dtype=torch.uint8, device=self.device)
        row[: len(data)].copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        rows = self._gather_rows(row).tolist()
        return [json.loads(bytes(each[:length])) for each, length in zip(rows, lengths, strict=True)]

    def _gather_rows(self, row: Tensor) -> Tensor:
        """The vectors of all ranks, in rank order: [W, len(row)]."""
        rows = row.new_empty(self.size * row.shape[0])
        dist.all_gather_into_tensor(rows, row)
        return rows.view(self.size, -1)


def _kind(tensor: Tensor) -> list[Any]:
    """Data type and shape, as JSON."""
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
