"""The cosine regression against closed forms in float64."""

import math

import numpy as np
import pytest
import torch

from univip.losses.regression import cosine_loss, unit


def test_loss_is_scale_times_one_minus_cosine():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 7))
    cosines = [
        np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y)) for x, y in zip(first, second, strict=True)
    ]

    loss = cosine_loss(torch.from_numpy(first), torch.from_numpy(second), scale=3.0)

    np.testing.assert_allclose(loss.numpy(), 3.0 * (1.0 - np.array(cosines)), rtol=1e-13)


def test_scale_two_is_the_squared_distance_of_unit_vectors():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 9, dtype=torch.float64)
    squared = torch.tensor(
        [((x / x.norm() - y / y.norm()) ** 2).sum() for x, y in zip(first, second, strict=True)]
    )

    torch.testing.assert_close(cosine_loss(first, second, scale=2.0), squared, rtol=1e-12, atol=1e-12)


def test_gradient_passes_gradcheck():
    torch.manual_seed(0)
    prediction = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 2, 5, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda p: cosine_loss(p, target, scale=2.0), (prediction,))


def test_zero_vector_has_a_finite_value_and_gradient():
    prediction = torch.zeros(2, 4, requires_grad=True)
    loss = cosine_loss(prediction, torch.ones(2, 4), scale=2.0)
    loss.sum().backward()

    assert loss.tolist() == [2.0, 2.0]
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e4, 1e15])
def test_loss_does_not_depend_on_length(length):
    direction = torch.tensor([[3.0, 4.0]])

    loss = cosine_loss(direction * length, torch.tensor([[4.0, 3.0]]), scale=1.0)

    assert loss.item() == pytest.approx(1.0 - 24.0 / 25.0, abs=1e-6)


def test_autocast_changes_no_bit_and_bf16_inputs_give_fp32():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 32)
    outside = cosine_loss(first, second, scale=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosine_loss(first, second, scale=2.0)
        lowered = cosine_loss(first.bfloat16(), second.bfloat16(), scale=2.0)

    assert torch.equal(outside, inside)
    assert lowered.dtype == torch.float32
    assert unit(first.double()).dtype == torch.float64
