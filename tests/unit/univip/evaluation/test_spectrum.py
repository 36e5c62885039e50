"""Spread and effective rank against numpy's singular values and cases known by hand."""

import math

import numpy as np
import pytest
import torch

from univip.evaluation.spectrum import effective_rank, feature_std


@pytest.mark.parametrize("shape", [(200, 16), (10, 40)])
def test_effective_rank_is_the_entropy_of_the_singular_values(shape):
    rng = np.random.default_rng(0)
    features = rng.normal(size=shape) * np.exp(rng.normal(size=shape[1]))
    singular = np.linalg.svd(features, compute_uv=False)
    shares = singular / singular.sum()

    rank = effective_rank(torch.from_numpy(features))

    assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


def test_rank_of_an_orthonormal_basis_is_its_size_and_of_a_line_is_one():
    assert effective_rank(torch.eye(8)) == pytest.approx(8.0)
    assert effective_rank(torch.ones(20, 8)) == pytest.approx(1.0, abs=1e-5)
    assert effective_rank(torch.zeros(20, 8)) == 1.0


def test_spread_is_one_for_even_directions_and_zero_for_equal_ones():
    torch.manual_seed(0)
    features = torch.randn(5000, 64)

    assert feature_std(features).item() == pytest.approx(1.0, abs=0.02)
    assert feature_std(features * 100.0).item() == pytest.approx(feature_std(features).item(), rel=1e-5)
    assert feature_std(features[:1].repeat(10, 1) * torch.arange(1.0, 11.0)[:, None]).item() < 1e-6
    assert feature_std(features[:1]).item() == 0.0
    of_four = torch.stack([feature_std(each) for each in features.split(4)])
    expected = math.sqrt(2 / 3) * math.gamma(4 / 2) / math.gamma(3 / 2)  # that of four normal values
    assert of_four.mean().item() == pytest.approx(expected, abs=0.01)
