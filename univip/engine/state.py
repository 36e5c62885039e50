"""Everything that must survive, and nothing else.

All randomness is keyed by data step and image, so no generator state is here; counters for people live in the
journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from univip.checkpoint.bits import sums_of_bits
from univip.errors import CheckpointError
from univip.resilience.guard import Guard
from univip.types import Method


class Norms(NamedTuple):
    """L2 norms of the online side, and whether every floating-point value of the whole state is finite.

    A value whose square is not finite (beyond 1e19 in fp32) is damage as well.
    """

    finite: Tensor
    parameters: Tensor
    buffers: Tensor


@dataclass
class TrainState:
    """Networks, optimizer and position; what a checkpoint holds.

    Attributes:
        data_step: The next position of the sample plan.
        step: Optimizer steps applied on the way here.
    """

    method: Method
    optimizer: Optimizer
    guard: Guard
    data_step: int = 0
    step: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: `online.*`, `target.*`, `optimizer.<slot>.*`."""
        tensors = dict(self._network_tensors())
        for name, parameter in self.method.online.named_parameters():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{slot}.{name}"] = value
        return tensors

    def facts(self) -> dict[str, object]:
        """The part that is not tensors."""
        return {
            "data_step": self.data_step,
            "step": self.step,
            "guard": self.guard.facts(),
        }

    def load(self, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        """Become the state that was saved.

        Raises:
            CheckpointError: If names or shapes are not those of this model; nothing is changed then.
        """
        networks = dict(self._network_tensors())
        saved_networks = {name: value for name, value in tensors.items() if not name.startswith("optimizer.")}
        parameters = dict(self.method.online.named_parameters())
        slots = [name.split(".", 2) for name in tensors if name.startswith("optimizer.")]
        wrong = sorted(set(networks) ^ set(saved_networks)) + sorted(
            name for _, _, name in slots if name not in parameters
        )
        wrong += [
            name
            for name, value in saved_networks.items()
            if name in networks and networks[name].shape != value.shape
        ]
        if wrong:
            raise CheckpointError(
                f"the checkpoint is of another model: {len(wrong)} tensors differ, such as `{wrong[0]}`",
                fix="resume with the configuration that the run was started with",
            )
        self.guard.load(facts.get("guard"))
        with torch.no_grad():
            for name, value in saved_networks.items():
                networks[name].copy_(value)
        self.optimizer.state.clear()
        for _, slot, name in slots:
            parameter = parameters[name]
            # A copy: a loaded tensor is the mapped file, which would keep the space of a pruned checkpoint.
            value = tensors[f"optimizer.{slot}.{name}"].to(parameter.device, copy=True)
            self.optimizer.state[parameter][slot] = value
        self.data_step = _integer(facts, "data_step")
        self.step = _integer(facts, "step")

    def norms(self) -> Norms:
        """How long the state is, and whether all of it is finite; scalars on the device, no host sync."""
        online, target = self.method.online, self.method.target
        parameters = list(online.parameters())
        buffers = [buffer for buffer in online.buffers() if buffer.is_floating_point()]
        slots = [value for slots in self.optimizer.state.values() for value in slots.values()]
        slots = [value for value in slots if torch.is_tensor(value)]
        others = [*target.parameters(), *target.buffers(), *slots]
        others = [tensor for tensor in others if tensor.is_floating_point()]
        # A norm is not finite if any element is not; one fused kernel per dtype and device instead of one per
        # tensor. On a CPU the largest absolute value would take ten times as long as this one.
        norms = torch.stack(torch._foreach_norm([*parameters, *buffers, *others]))
        ends = len(parameters), len(parameters) + len(buffers)
        return Norms(
            finite=torch.isfinite(norms).all(),
            parameters=torch.linalg.vector_norm(norms[: ends[0]]),
            buffers=torch.linalg.vector_norm(norms[ends[0] : ends[1]]),
        )

    def digest(self) -> dict[str, int]:
        """Sums of the bits of each tensor, as integers: equal replicas have equal ones; one host sync."""
        return sums_of_bits(self.tensors())

    def _network_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for side, module in (("online", self.method.online), ("target", self.method.target)):
            for name, value in module.state_dict().items():
                yield f"{side}.{name}", value


def _integer(facts: dict[str, object], name: str) -> int:
    value = facts.get(name)
    if not isinstance(value, int):
        raise CheckpointError(f"`{name}` of the manifest must be an integer, but is {value!r}")
    return value
