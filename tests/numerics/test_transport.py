"""Entropic transport against POT, and the instance loss against the paper's equations."""

import warnings

import numpy as np
import pytest
import torch

from univip.config import Transport
from univip.errors import ConfigError
from univip.losses import transport
from univip.losses.transport import instance_loss, marginal_residual, sinkhorn

with warnings.catch_warnings():  # of its own source, on the first import
    warnings.simplefilter("ignore")
    import ot

SETTINGS = {"epsilon": 0.1, "num_iterations": 50, "scale": 2.0}


def random_problem(seed, batch=3, k=4):
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0.0, 2.0, size=(batch, k, k))
    masses = rng.uniform(0.05, 1.0, size=(2, batch, k))
    rows, columns = masses / masses.sum(axis=-1, keepdims=True)
    return cost, rows, columns


def solve(cost, rows, columns, **settings):
    tensors = (torch.as_tensor(value) for value in (cost, rows, columns))
    return sinkhorn(*tensors, **settings).numpy()


@pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.05])
def test_plan_is_the_one_of_pot(epsilon):
    cost, rows, columns = random_problem(0)

    plans = solve(cost, rows, columns, epsilon=epsilon, num_iterations=5000)

    for plan, c, b, a in zip(plans, cost, rows, columns, strict=True):
        expected = ot.sinkhorn(b, a, c, epsilon, method="sinkhorn_log", stopThr=1e-15, numItermax=100_000)
        np.testing.assert_allclose(plan, expected, atol=1e-10)


def test_small_epsilon_approaches_the_exact_transport_where_a_plain_kernel_is_zero():
    cost, rows, columns = random_problem(1)
    assert np.exp(-cost.astype(np.float32) / np.float32(0.005)).min() == 0.0

    plans = solve(cost, rows, columns, epsilon=0.005, num_iterations=5000)

    for plan, c, b, a in zip(plans, cost, rows, columns, strict=True):
        assert np.sum(plan * c) == pytest.approx(ot.emd2(b, a, c), abs=0.02)


def test_fp32_plan_of_the_defaults_stays_near_float64():
    cost, rows, columns = random_problem(2, batch=64)
    exact = solve(cost, rows, columns, epsilon=0.1, num_iterations=50)

    single = solve(
        *(value.astype(np.float32) for value in (cost, rows, columns)), epsilon=0.1, num_iterations=50
    )

    assert single.dtype == np.float32
    np.testing.assert_allclose(single, exact, atol=1e-6)


def test_columns_are_met_exactly_and_residual_is_the_largest_violation():
    cost, rows, columns = (torch.as_tensor(value) for value in random_problem(3))
    plan = sinkhorn(cost, rows, columns, epsilon=0.1, num_iterations=3)

    torch.testing.assert_close(plan.sum(1), columns, rtol=1e-12, atol=1e-14)
    violation = (plan.sum(2) - rows).abs().max()
    assert violation > 1e-4
    torch.testing.assert_close(marginal_residual(plan, rows, columns), violation)


def test_zero_masses_give_zero_rows_and_no_nan():
    cost, rows, columns = random_problem(4, batch=1)
    rows[0] = [0.0, 0.5, 0.5, 0.0]
    plan = solve(cost, rows, columns, epsilon=0.1, num_iterations=200)
    everything_zero = solve(cost, rows * 0, columns * 0, epsilon=0.1, num_iterations=50)

    np.testing.assert_allclose(plan.sum(2)[0], rows[0], atol=1e-6)
    assert np.isfinite(everything_zero).all()
    assert everything_zero.max() < 1e-300


@pytest.mark.parametrize(
    "settings", [{"epsilon": 0.0, "num_iterations": 5}, {"epsilon": 0.1, "num_iterations": 0}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError, match="must be positive"):
        solve(*random_problem(5), **settings)


def random_embeddings(seed, batch=3, k=4, dim=6):
    generator = torch.Generator().manual_seed(seed)
    instances = torch.randn(2, batch, k, dim, dtype=torch.float64, generator=generator)
    scenes = torch.randn(2, batch, 2, dim, dtype=torch.float64, generator=generator)
    return instances[0], instances[1], scenes[0], scenes[1]


def normalise(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def reference(online, target, online_scenes, target_scenes, mode):
    """Equations 10 to 12 of one image, with numpy and POT."""
    cosines = normalise(online) @ normalise(target).T
    if mode is Transport.balanced:
        online, target = normalise(online), normalise(target)
        online_scenes, target_scenes = normalise(online_scenes), normalise(target_scenes)
    b = np.maximum(online @ target_scenes.mean(axis=0), 0.0)
    a = np.maximum(target @ online_scenes.mean(axis=0), 0.0)
    if mode is Transport.balanced:
        b, a = (b + 1e-3) / (b + 1e-3).sum(), (a + 1e-3) / (a + 1e-3).sum()
        plan = ot.sinkhorn(b, a, 1.0 - cosines, 0.1, method="sinkhorn_log", stopThr=1e-15, numItermax=100_000)
        return 2.0 * (1.0 - (plan * cosines).sum())
    kernel = np.exp(-(1.0 - cosines) / 0.1)  # unequal masses: no fixed point, so the very iteration
    left, right = np.ones(len(b)), np.ones(len(a))
    for _ in range(50):
        left = b / (kernel @ right)
        right = a / (kernel.T @ left)
    return -2.0 * (left[:, None] * kernel * right[None, :] * cosines).sum()


def test_balanced_loss_follows_the_equations_with_unit_masses():
    embeddings = random_embeddings(0)
    expected = [
        reference(*image, Transport.balanced) for image in zip(*(e.numpy() for e in embeddings), strict=True)
    ]

    result = instance_loss(*embeddings, transport=Transport.balanced, **SETTINGS | {"num_iterations": 3000})

    np.testing.assert_allclose(result.loss.numpy(), expected, atol=1e-9)
    assert result.residual < 1e-9


def test_paper_literal_loss_follows_the_printed_equations():
    embeddings = random_embeddings(1, k=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = [
            reference(*image, Transport.paper_literal)
            for image in zip(*(e.numpy() for e in embeddings), strict=True)
        ]
    usable = np.isfinite(expected)
    assert usable.any()

    result = instance_loss(*embeddings, transport=Transport.paper_literal, **SETTINGS)

    np.testing.assert_allclose(result.loss.numpy()[usable], np.array(expected)[usable], rtol=1e-9)
    assert result.loss.isfinite().all()


def test_rows_carry_the_agreement_with_target_scenes_and_columns_with_online_scenes():
    # By the equations row 0 has all the mass of the rows and column 1 all of the columns: o_0 = t_1, loss 0.
    # With the two masses swapped, all would flow from row 1 to column 0: o_1 orthogonal to t_0, loss 2.
    x, y, z = torch.eye(3, dtype=torch.float64)
    online, target = torch.stack([x, y])[None], torch.stack([z, x])[None]
    scenes = torch.stack([x, x])[None]

    result = instance_loss(online, target, scenes, scenes, transport=Transport.balanced, **SETTINGS)
    literal = instance_loss(online, target, scenes, scenes, transport=Transport.paper_literal, **SETTINGS)

    assert result.loss.item() == pytest.approx(0.0, abs=0.01)
    assert literal.loss.item() == pytest.approx(-2.0, abs=0.01)


def test_gradient_passes_gradcheck_for_a_constant_plan(monkeypatch):
    online, *others = random_embeddings(2)
    plan = torch.rand(3, 4, 4, dtype=torch.float64)
    monkeypatch.setattr(transport, "sinkhorn", lambda *masses, **settings: plan)

    def loss(o):
        return instance_loss(o, *others, transport=Transport.balanced, **SETTINGS).loss

    assert torch.autograd.gradcheck(loss, (online.requires_grad_(),))


def test_no_gradient_passes_through_the_plan():
    online, target, online_scenes, target_scenes = random_embeddings(3)
    online.requires_grad_()
    online_scenes.requires_grad_()
    target_scenes.requires_grad_()

    instance_loss(
        online, target, online_scenes, target_scenes, transport=Transport.balanced, **SETTINGS
    ).loss.sum().backward()

    assert online.grad is not None
    assert online_scenes.grad is None
    assert target_scenes.grad is None


def test_balanced_loss_is_bounded_however_long_the_embeddings_are():
    embeddings = [value.float() * 1e6 for value in random_embeddings(4, batch=32)]

    result = instance_loss(*embeddings, transport=Transport.balanced, **SETTINGS)

    assert result.loss.min() >= 0.0
    assert result.loss.max() <= 4.0


def test_instances_that_all_disagree_weigh_the_same():
    x = torch.eye(3, dtype=torch.float64)[:1].repeat(4, 1)[None]
    scenes = -x[:, :2]

    result = instance_loss(x, x, scenes, scenes, transport=Transport.balanced, **SETTINGS)

    assert result.loss.item() == pytest.approx(0.0, abs=1e-12)
    assert result.residual < 1e-12


def test_autocast_changes_no_bit():
    embeddings = [value.float() for value in random_embeddings(5)]
    outside = instance_loss(*embeddings, transport=Transport.balanced, **SETTINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = instance_loss(*embeddings, transport=Transport.balanced, **SETTINGS)

    assert torch.equal(outside.loss, inside.loss)


def test_no_images_give_no_losses_and_a_residual_of_zero():
    embeddings = [value[:0] for value in random_embeddings(6)]

    result = instance_loss(*embeddings, transport=Transport.balanced, **SETTINGS)

    assert result.loss.shape == (0,)
    assert result.residual.item() == 0.0
