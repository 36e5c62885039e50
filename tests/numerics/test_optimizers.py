"""SGD and LARS against closed forms in float64, and LARS against timm's."""

import numpy as np
import pytest
import torch
from timm.optim.lars import Lars as TimmLars
from torch import nn

from univip.config import OptimConfig, OptimizerName
from univip.optim.groups import make_optimizer


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)).double()


def random_gradients(network, num_steps, seed=1):
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=p.shape) for p in network.parameters()] for _ in range(num_steps)]


def run(optimizer, network, gradients, rates):
    for gradient, rate in zip(gradients, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, value in zip(network.parameters(), gradient, strict=True):
            parameter.grad = torch.from_numpy(value)
        optimizer.step()
    return [parameter.detach().numpy().copy() for parameter in network.parameters()]


def closed_form(weights, gradients, rates, config, *, lars):
    """One parameter at a time, as the docstring of `lars` writes it."""
    velocities = [np.zeros_like(weight) for weight in weights]
    for gradient, rate in zip(gradients, rates, strict=True):
        for index, (weight, g) in enumerate(zip(weights, gradient, strict=True)):
            plain = config.exclude_bias_and_norm and weight.ndim == 1
            decay = 0.0 if plain else config.weight_decay
            length, slope = np.linalg.norm(weight), np.linalg.norm(g)
            ratio = 1.0
            if lars and not plain and length > 0 and slope > 0:
                ratio = config.lars_trust * length / (slope + decay * length)
            velocities[index] = config.momentum * velocities[index] + ratio * (g + decay * weight)
            weights[index] = weight - rate * velocities[index]
    return weights


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("name", list(OptimizerName))
def test_five_steps_follow_the_closed_form(name, exclude):
    config = OptimConfig(name=name, weight_decay=0.05, exclude_bias_and_norm=exclude)
    network = small_network()
    gradients, rates = random_gradients(network, 5), [0.1, 0.4, 0.3, 0.2, 0.1]
    start = [parameter.detach().numpy().copy() for parameter in network.parameters()]
    assert any(not weight.any() for weight in start)  # a normalisation bias: length 0, ratio 1

    result = run(make_optimizer(config, network), network, gradients, rates)

    for ours, expected in zip(
        result, closed_form(start, gradients, rates, config, lars=name is OptimizerName.lars), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)


def test_lars_is_the_one_of_timm():
    config = OptimConfig(name=OptimizerName.lars, weight_decay=0.05)
    ours, theirs = small_network(), small_network()
    gradients, rates = random_gradients(ours, 5), [0.1, 0.4, 0.3, 0.2, 0.1]
    reference = TimmLars(
        theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.05, trust_coeff=1e-3, eps=0.0
    )

    for mine, other in zip(
        run(make_optimizer(config, ours), ours, gradients, rates),
        run(reference, theirs, gradients, rates),
        strict=True,
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-14)


def test_lars_leaves_a_parameter_without_gradient_alone():
    network = small_network()
    optimizer = make_optimizer(OptimConfig(name=OptimizerName.lars), network)
    before = network[2].weight.clone()
    network[0].weight.grad = torch.ones_like(network[0].weight)

    optimizer.step()

    assert torch.equal(network[2].weight, before)
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("name", list(OptimizerName))
def test_state_that_is_saved_and_loaded_continues_bit_for_bit(name):
    config = OptimConfig(name=name, exclude_bias_and_norm=True)
    straight = small_network()
    gradients, rates = random_gradients(straight, 6), [0.1] * 6
    expected = run(make_optimizer(config, straight), straight, gradients, rates)

    stopped = small_network()
    first = make_optimizer(config, stopped)
    run(first, stopped, gradients[:3], rates[:3])
    second = make_optimizer(config, stopped)
    second.load_state_dict(first.state_dict())
    result = run(second, stopped, gradients[3:], rates[3:])

    for ours, other in zip(result, expected, strict=True):
        assert ours.tobytes() == other.tobytes()
