"""BYOL's loss, its two sides and what the target may and may not do."""

import copy

import numpy as np
import pytest
import torch

from univip.config import Backbone, MethodConfig, MethodName, ModelConfig, ViewsConfig
from univip.methods.build import make_method
from univip.models.norm import commit_statistics
from univip.types import Views

MODEL = ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8)


def make_views(num_images=4, dtype=torch.float32):
    torch.manual_seed(1)
    none = torch.zeros(num_images, 0, 3, 8, 8, dtype=dtype)
    scenes = torch.randn(num_images, 2, 3, 32, 32, dtype=dtype)
    return Views(scenes, none, none, torch.zeros(num_images, dtype=torch.bool))


@pytest.fixture
def method():
    torch.manual_seed(0)
    return make_method(MethodConfig(name=MethodName.byol), MODEL, ViewsConfig(num_instances=0))


def cosines(first, second):
    first, second = (value.detach().double().numpy() for value in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(axis=1) / lengths


def test_loss_is_symmetric_two_minus_two_cosine_of_each_image(method):
    method.online.double()
    method.target.double()
    views = make_views(dtype=torch.float64)
    first, second = views.scenes[:, 0], views.scenes[:, 1]
    expected = 2.0 * (1.0 - cosines(method.online(first), method.target(second)))
    expected += 2.0 * (1.0 - cosines(method.online(second), method.target(first)))

    result = method.losses(views)

    np.testing.assert_allclose(result.total.detach().numpy(), expected, rtol=1e-10)
    assert list(result.terms) == ["scene"]
    assert torch.equal(result.terms["scene"], result.total.detach())


def test_gradient_reaches_every_online_parameter_and_no_target_parameter(method):
    method.losses(make_views()).total.mean().backward()

    for name, parameter in method.online.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(parameter.grad is None for parameter in method.target.parameters())
    assert not any(parameter.requires_grad for parameter in method.target.parameters())


def test_target_starts_equal_and_shares_no_memory(method):
    online = method.online.state_dict(keep_vars=True)
    for name, value in method.target.state_dict(keep_vars=True).items():
        assert torch.equal(value, online[name])
        assert value.data_ptr() != online[name].data_ptr()


def test_update_moves_parameters_but_not_the_statistics_of_the_target(method):
    before = copy.deepcopy(method.target.state_dict())
    with torch.no_grad():
        for parameter in method.online.parameters():
            parameter += 1.0
    method.losses(make_views())
    commit_statistics(method.online)

    method.update_target(0.75)

    parameters = dict(method.target.named_parameters())
    for name, value in method.target.state_dict().items():
        expected = before[name] + 0.25 if name in parameters else before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_each_scene_is_a_forward_of_its_own_on_both_sides(method):
    method.losses(make_views())
    for side in (method.online, method.target):
        commit_statistics(side)
        counts = {v.item() for k, v in side.named_buffers() if k.endswith("num_batches_tracked")}

        assert counts == {2}


def test_everything_is_built_in_the_constructor(method):
    before = [set(side.state_dict()) for side in (method.online, method.target)]

    method.losses(make_views())

    assert [set(side.state_dict()) for side in (method.online, method.target)] == before


def test_same_seed_gives_the_same_method():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(
            make_method(MethodConfig(name=MethodName.byol), MODEL, ViewsConfig()).online.state_dict()
        )

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_losses_stay_fp32_under_autocast(method):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method.losses(make_views())
    result.total.sum().backward()

    assert result.total.dtype == torch.float32
    torch.testing.assert_close(result.total, method.losses(make_views()).total, rtol=0.1, atol=0.1)


def test_statistics_tell_spread_embeddings_from_collapsed_ones(method):
    healthy = method.losses(make_views(num_images=16)).statistics
    with torch.no_grad():
        method.online.predictor[3].weight.zero_()
    collapsed = method.losses(make_views(num_images=16)).statistics

    assert 0.3 < healthy["embedding_std_online"] <= 1.0
    assert 0.3 < healthy["embedding_std_target"] <= 1.0
    assert collapsed["embedding_std_online"] == 0.0
    assert not any(value.requires_grad for value in healthy.values())


def test_a_single_image_does_not_look_like_a_collapse(method):
    assert method.losses(make_views(num_images=1)).statistics == {}
