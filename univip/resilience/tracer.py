"""Which operation is the first to put out a value that is not finite.

Every operation of forward, backward and optimizer passes through `torch`'s dispatcher, where this looks at
its results; nothing is computed otherwise than without it. That costs a wait for the device after each
operation: for one step under the microscope, not for training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker

# They put out what they find in memory, a constant, or what another rank sent, as views put out what they are
# views of: the fault is elsewhere.
_INNOCENT = ("empty", "fill_", "full", "zeros", "ones", "allgather", "allreduce", "broadcast", "wait_tensor")

_SHOWN = 8  # tensors; the optimizer works on all parameters at once


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Active as a context; keeps the first finding, as JSON values.

    Args:
        names: What a tensor is called, if it has a name.
        phase: Where in the step the program is; empty where nothing is to be looked at.
    """

    def __init__(self, names: Callable[[Tensor], str], phase: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.finding: dict[str, Any] | None = None
        self._names = names
        self._phase = phase
        self._modules = ModuleTracker()

    def __enter__(self) -> Tracer:
        self._modules.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._modules.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch instead of every operation."""
        kwargs = kwargs or {}
        is_innocent = func.is_view or any(name in str(func) for name in _INNOCENT)
        if self.finding is not None or is_innocent or not self._phase():
            return func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if leaf is not None]
        is_mutable = func._schema.is_mutable
        before = [
            leaf.detach().clone() if isinstance(leaf, Tensor) and is_mutable else leaf for leaf in leaves
        ]
        result = func(*args, **kwargs)
        # What changes many tensors in place returns nothing.
        outputs = tree_leaves(result) if result is not None or not is_mutable else leaves
        bad = [leaf for leaf in outputs if isinstance(leaf, Tensor) and not is_finite(leaf)]
        if bad:
            self.finding = {
                "operation": str(func),
                "phase": self._phase(),
                "module": self._module(),
                "inputs": _first(self._describe(leaves, before)),
                "constants": [repr(leaf) for leaf in leaves if isinstance(leaf, float)],
                "outputs": _first(self._describe(bad, bad)),
            }
        return result

    def _module(self) -> str:
        """The innermost module that is running, forward or backward; empty outside of all."""
        inside = self._modules.parents - {"Global"}
        return max(inside, key=lambda name: (name.count("."), name), default="")

    def _describe(self, tensors: list[Any], values: list[Any]) -> list[dict[str, Any]]:
        """Tensors under their names, with the values they had."""
        return [
            {"name": self._names(tensor), **statistics_of(value)}
            for tensor, value in zip(tensors, values, strict=True)
            if isinstance(tensor, Tensor)
        ]


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; integers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def statistics_of(tensor: Tensor) -> dict[str, Any]:
    """Shape, type, how many values are not finite, and the range of the others."""
    values = tensor.detach()
    about: dict[str, Any] = {"shape": list(values.shape), "dtype": str(values.dtype).removeprefix("torch.")}
    if values.is_floating_point():
        finite = values[torch.isfinite(values)].double()
        about["nonfinite"] = values.numel() - finite.numel()
        if finite.numel():
            about |= {"min": float(finite.min()), "max": float(finite.max())}
    return about


def _first(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not finite before the others, and not hundreds of them."""
    return sorted(described, key=lambda each: not each.get("nonfinite"))[:_SHOWN]
