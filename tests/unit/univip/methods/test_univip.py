"""UniVIP's three terms, and images that hold no instances."""

import pytest
import torch

from univip.config import Backbone, MethodConfig, ModelConfig, Transport, ViewsConfig
from univip.losses.transport import instance_loss
from univip.methods.build import make_method
from univip.models.norm import commit_statistics
from univip.types import Views

MODEL = ModelConfig(backbone=Backbone.tiny, hidden_dim=16, embedding_dim=8)
K = 3


def make_univip(**settings):
    torch.manual_seed(0)
    return make_method(MethodConfig(**settings), MODEL, ViewsConfig(num_instances=K))


def make_views(has_instances=(True, True, True, True), dtype=torch.float32):
    torch.manual_seed(1)
    n = len(has_instances)
    return Views(
        scenes=torch.randn(n, 2, 3, 32, 32, dtype=dtype),
        online_instances=torch.randn(n, K, 3, 16, 16, dtype=dtype),
        target_instances=torch.randn(n, K, 3, 16, 16, dtype=dtype),
        has_instances=torch.tensor(has_instances),
    )


def spoil(views, value):
    """The same views with other pixels in the instances of images that have none."""
    masked = ~views.has_instances
    online, target = views.online_instances.clone(), views.target_instances.clone()
    online[masked] = value
    target[masked] = value
    return views._replace(online_instances=online, target_instances=target)


def gradients(method):
    return {name: parameter.grad for name, parameter in method.online.named_parameters()}


@pytest.mark.parametrize("mode", list(Transport))
def test_terms_are_those_of_the_paper(mode):
    method = make_univip(transport=mode, cosine_scale=2.0)
    method.online.double()
    method.target.double()
    views = make_views(dtype=torch.float64)
    s1, s2 = views.scenes[:, 0], views.scenes[:, 1]
    f_o1, f_o2, f_t1, f_t2 = method.online(s1), method.online(s2), method.target(s1), method.target(s2)
    o = method.online(views.online_instances.reshape(-1, 3, 16, 16)).reshape(4, K, 8)
    t = method.target(views.target_instances.reshape(-1, 3, 16, 16)).reshape(4, K, 8)
    whole = method.online.instance_projection(torch.cat([o[:, m] for m in range(K)], dim=1))

    def distance(first, second):
        return 2.0 - 2.0 * torch.cosine_similarity(first, second, dim=1)

    correspondence = instance_loss(
        o,
        t,
        torch.stack([f_o1, f_o2], dim=1),
        torch.stack([f_t1, f_t2], dim=1),
        transport=mode,
        epsilon=0.1,
        num_iterations=50,
        scale=2.0,
    )

    result = method.losses(views)

    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(result.terms["scene"], distance(f_o1, f_t2) + distance(f_o2, f_t1), **close)
    torch.testing.assert_close(
        result.terms["scene_instance"], distance(whole, f_t1) + distance(whole, f_t2), **close
    )
    torch.testing.assert_close(result.terms["instance"], correspondence.loss, **close)
    torch.testing.assert_close(result.total, sum(result.terms.values()), **close)
    assert set(result.statistics) == {"embedding_std_online", "embedding_std_target", "sinkhorn_residual"}


def test_gradient_reaches_every_online_parameter():
    method = make_univip()
    method.losses(make_views()).total.mean().backward()

    for name, gradient in gradients(method).items():
        assert gradient is not None, name
        assert gradient.any(), name
    assert all(parameter.grad is None for parameter in method.target.parameters())


def test_image_without_instances_contributes_nothing_to_the_instance_terms():
    result = make_univip().losses(make_views(has_instances=(True, False, True, False)))

    assert result.terms["scene"].all()
    for name in ("scene_instance", "instance"):
        assert (result.terms[name] != 0).tolist() == [True, False, True, False]
    torch.testing.assert_close(result.total[1], result.terms["scene"][1], rtol=0, atol=0)


@pytest.mark.parametrize("pixels", [torch.nan, torch.inf, 1e30])
def test_pixels_of_missing_instances_leak_nowhere(pixels):
    views = make_views(has_instances=(True, False, True, True))
    outcomes = []
    for value in (0.0, pixels):
        method = make_univip()
        result = method.losses(spoil(views, value))
        result.total.sum().backward()
        commit_statistics(method.online)
        commit_statistics(method.target)
        outcomes.append(
            [
                result.total,
                *result.terms.values(),
                *result.statistics.values(),
                *gradients(method).values(),
                *method.online.buffers(),
                *method.target.buffers(),
            ]
        )

    assert all(torch.equal(clean, spoilt) for clean, spoilt in zip(*outcomes, strict=True))


def test_batch_without_any_instances_still_gives_every_parameter_a_gradient():
    method = make_univip()
    result = method.losses(spoil(make_views(has_instances=(False,) * 4), torch.nan))
    result.total.sum().backward()
    commit_statistics(method.online)

    assert result.total.isfinite().all()
    assert result.statistics["sinkhorn_residual"] == 0.0
    for name, gradient in gradients(method).items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
    assert not method.online.instance_projection.weight.grad.any()
    counts = {v.item() for k, v in method.online.named_buffers() if k.endswith("num_batches_tracked")}
    assert counts == {2}


def test_instances_are_one_forward_beside_the_two_scenes():
    method = make_univip()
    method.losses(make_views())
    for side in (method.online, method.target):
        commit_statistics(side)
        counts = {v.item() for k, v in side.named_buffers() if k.endswith("num_batches_tracked")}

        assert counts == {3}


def test_projection_of_instances_has_no_counterpart_in_the_target():
    method = make_univip()

    assert {name.split(".")[0] for name in method.online.state_dict()} == {
        "backbone",
        "projector",
        "predictor",
        "instance_projection",
    }
    assert {name.split(".")[0] for name in method.target.state_dict()} == {"backbone", "projector"}
    assert method.online.instance_projection.weight.shape == (8, K * 8)


def test_order_of_instances_matters_to_the_projection_only_as_the_order_of_boxes():
    method = make_univip()
    views = make_views()
    turned = views._replace(online_instances=views.online_instances.flip(1))

    plain, flipped = method.losses(views).terms, method.losses(turned).terms

    torch.testing.assert_close(plain["instance"], flipped["instance"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain["scene_instance"], flipped["scene_instance"], atol=1e-3)


def test_cosine_scale_multiplies_every_term():
    single, double = (make_univip(cosine_scale=scale).losses(make_views()) for scale in (1.0, 2.0))

    for name, term in single.terms.items():
        torch.testing.assert_close(2.0 * term, double.terms[name])


def test_losses_stay_fp32_under_autocast():
    method = make_univip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = method.losses(make_views())
    result.total.sum().backward()

    assert result.total.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in result.terms.values())
