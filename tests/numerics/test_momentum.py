"""The momentum target against its closed form."""

import math

import pytest
import torch
from torch import nn

from univip.models.momentum import target_momentum, update_target


def test_momentum_rises_from_base_to_one_along_a_cosine():
    steps = [target_momentum(step, total_data_steps=1000, base=0.99) for step in range(1001)]

    assert steps[0] == pytest.approx(0.99, abs=1e-15)
    assert steps[500] == pytest.approx(0.995, abs=1e-15)
    assert steps[250] == pytest.approx(1 - 0.01 * (math.sqrt(0.5) + 1) / 2, abs=1e-15)
    assert steps[1000] == 1.0
    assert steps == sorted(steps)


def test_momentum_stays_at_one_beyond_the_end():
    assert target_momentum(1500, total_data_steps=1000, base=0.99) == 1.0


def test_parameters_average_exponentially_and_buffers_are_left_alone():
    torch.manual_seed(0)
    online, target = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double() for _ in range(2))
    start = {name: value.clone() for name, value in target.named_parameters()}
    buffers = {name: value.clone() for name, value in target.named_buffers()}
    online[1].running_mean += 1.0

    for _ in range(5):
        update_target(target, online, momentum=0.9)

    for name, parameter in online.named_parameters():
        expected = 0.9**5 * start[name] + (1 - 0.9**5) * parameter
        torch.testing.assert_close(target.get_parameter(name), expected, rtol=1e-13, atol=1e-14)
    for name, buffer in target.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_momentum_one_changes_no_bit():
    online, target = nn.Linear(50, 50), nn.Linear(50, 50)
    before = target.weight.clone()

    update_target(target, online, momentum=1.0)

    assert torch.equal(target.weight, before)


def test_parameters_that_only_the_online_side_has_are_left_alone():
    online, target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    before = online[1].weight.clone()

    update_target(target, online, momentum=0.0)

    assert torch.equal(target[0].weight, online[0].weight)
    assert torch.equal(online[1].weight, before)


def test_target_without_a_namesake_is_refused():
    with pytest.raises(KeyError):
        update_target(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), momentum=0.5)
