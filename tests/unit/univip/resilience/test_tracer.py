"""The first operation that puts out a value that is not finite."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from univip.resilience.tracer import Tracer


def trace(work: Any, *, names: dict[str, Tensor] | None = None, phase: str = "forward") -> dict[str, Any]:
    places = {tensor.data_ptr(): name for name, tensor in (names or {}).items()}
    tracer = Tracer(lambda tensor: places.get(tensor.data_ptr(), ""), lambda: phase)
    with tracer:
        work()
    return tracer.finding or {}


def test_the_first_operation_is_named_with_module_inputs_and_constants() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        network[2].weight[1, 0] = math.inf
    ones = torch.ones(4, 2)

    finding = trace(lambda: network(ones).exp() * 2.0, names={"second weight": network[2].weight})

    assert finding["operation"] == "aten.addmm.default"
    assert finding["module"] == "Sequential.2"
    worst = finding["inputs"][0]
    assert (worst["name"], worst["shape"], worst["nonfinite"]) == ("second weight", [3, 2], 1)
    assert worst["min"] >= -1.0
    assert worst["max"] <= 1.0


def test_what_overflows_has_finite_inputs_whose_range_is_told() -> None:
    large = torch.tensor([1.0, 3e38])

    finding = trace(lambda: (large.abs() * 2.0).sum())

    assert finding["operation"] == "aten.mul.Tensor"
    assert [(each["nonfinite"], each["max"]) for each in finding["inputs"]] == [(0, pytest.approx(3e38))]
    assert finding["constants"] == ["2.0"]
    assert [each["nonfinite"] for each in finding["outputs"]] == [1]


def test_what_changes_tensors_in_place_is_told_with_their_values_before() -> None:
    weights = [torch.ones(2), torch.full((3,), 3e38)]

    finding = trace(lambda: torch._foreach_mul_(weights, 10.0))

    assert finding["operation"] == "aten._foreach_mul_.Scalar"
    assert [each["nonfinite"] for each in finding["inputs"]] == [0, 0]
    assert [each["shape"] for each in finding["outputs"]] == [[3]]


def test_backward_is_traced_too() -> None:
    x = torch.zeros(2, requires_grad=True)

    finding = trace(lambda: x.sqrt().sum().backward())

    assert finding["operation"].startswith("aten.div")


def test_views_fresh_memory_and_planted_constants_are_not_to_blame() -> None:
    bad = torch.tensor([[1.0, math.nan]])

    def innocent() -> None:
        torch.empty(1000)
        torch.zeros(2).fill_(math.nan)
        bad[0].view(2, 1)

    assert trace(innocent) == {}
    assert trace(lambda: bad[0] + 1)["operation"] == "aten.add.Tensor"


def test_outside_the_phases_of_a_step_nothing_is_looked_at() -> None:
    assert trace(lambda: torch.tensor([math.nan]) + 1, phase="") == {}
