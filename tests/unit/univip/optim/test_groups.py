"""Every trainable parameter in exactly one group, none of the target."""

import pytest
import torch
from torch import nn

from univip.config import (
    Backbone,
    MethodConfig,
    MethodName,
    ModelConfig,
    OptimConfig,
    OptimizerName,
    ViewsConfig,
)
from univip.methods.build import make_method
from univip.optim.groups import check_groups, make_optimizer, parameter_groups

MODEL = ModelConfig(backbone=Backbone.tiny, hidden_dim=8, embedding_dim=4)


@pytest.fixture(params=list(MethodName))
def method(request):
    return make_method(MethodConfig(name=request.param), MODEL, ViewsConfig())


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("name", list(OptimizerName))
def test_optimizer_of_a_method_passes_the_check(method, name, exclude):
    optimizer = make_optimizer(OptimConfig(name=name, exclude_bias_and_norm=exclude), method.online)

    check_groups(optimizer, method)


def test_excluded_group_holds_biases_and_normalisation_and_nothing_else(method):
    decayed, plain = parameter_groups(method.online, exclude_bias_and_norm=True)
    names = {id(parameter): name for name, parameter in method.online.named_parameters()}
    normed = {
        f"{path}.{kind}"
        for path, module in method.online.named_modules()
        if type(module).__name__ == "SynchronizedBatchNorm"
        for kind in ("weight", "bias")
    }
    biases = {name for name in names.values() if name.endswith("bias")}

    assert {names[id(p)] for p in plain["params"]} == normed | biases
    assert plain["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_parameter_that_came_after_the_optimizer_is_named(method):
    optimizer = make_optimizer(OptimConfig(), method.online)
    method.online.late = nn.Linear(2, 2, bias=False)

    with pytest.raises(RuntimeError, match=r"online\.late\.weight is in 0 groups"):
        check_groups(optimizer, method)


def test_target_parameter_in_a_group_is_named(method):
    optimizer = make_optimizer(OptimConfig(), method.online)
    optimizer.add_param_group({"params": [next(method.target.parameters())]})

    with pytest.raises(RuntimeError, match=r"target\.backbone\.\S+ is trained"):
        check_groups(optimizer, method)


def test_parameter_in_two_groups_is_named(method):
    optimizer = make_optimizer(OptimConfig(), method.online)
    first = optimizer.param_groups[0]["params"]
    optimizer.param_groups.append({"params": [first[0]]})

    with pytest.raises(RuntimeError, match="is in 2 groups"):
        check_groups(optimizer, method)


def test_frozen_parameter_is_in_no_group():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)

    (group,) = parameter_groups(network, exclude_bias_and_norm=False)

    assert all(torch.equal(a, b) for a, b in zip(group["params"], network[1].parameters(), strict=True))
