"""Schedules at steps that can be worked out by hand."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from univip.optim.schedules import learning_rate, peak_learning_rate, total_data_steps


def test_coco_for_800_epochs_takes_184824_data_steps():
    assert total_data_steps(800, 118_287, 512) == 184_824
    assert total_data_steps(800.0, 241_690, 512) == 377_641


@given(st.integers(1, 10**5), st.integers(1, 10**6), st.integers(1, 8192))
def test_every_sample_is_covered_and_no_step_is_spare(thousandths, num_images, global_batch):
    samples = Fraction(thousandths, 1000) * num_images

    steps = total_data_steps(thousandths / 1000, num_images, global_batch)

    assert (steps - 1) * global_batch < samples <= steps * global_batch


def test_fraction_of_an_epoch_is_read_as_the_decimal_it_prints_as():
    assert Fraction(0.1) * 1000 > 100
    assert total_data_steps(0.1, 1000, 100) == 1
    assert total_data_steps(1e-05, 10**6, 10) == 1


def test_learning_rate_scales_with_the_global_batch():
    assert peak_learning_rate(0.2, 512) == pytest.approx(0.4)
    assert peak_learning_rate(0.2, 4096) == pytest.approx(3.2)


def test_warmup_is_linear_and_ends_at_the_peak():
    rates = [learning_rate(step, peak=0.4, warmup_data_steps=4, total_data_steps=100) for step in range(4)]

    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_cosine_starts_at_the_peak_and_ends_at_zero():
    def rate(step):
        return learning_rate(step, peak=0.4, warmup_data_steps=20, total_data_steps=120)

    assert rate(20) == pytest.approx(0.4)
    assert rate(45) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))
    assert rate(70) == pytest.approx(0.2)
    assert rate(120) == pytest.approx(0.0, abs=1e-16)
    assert rate(500) == pytest.approx(0.0, abs=1e-16)
    assert all(rate(step) > rate(step + 1) > -1e-16 for step in range(20, 120))


def test_run_without_warmup_starts_at_the_peak():
    assert learning_rate(0, peak=0.4, warmup_data_steps=0, total_data_steps=10) == pytest.approx(0.4)


@pytest.mark.parametrize("total", [1, 5, 10])
def test_run_no_longer_than_its_warmup_only_rises(total):
    rates = [
        learning_rate(step, peak=1.0, warmup_data_steps=10, total_data_steps=total) for step in range(total)
    ]

    assert rates == pytest.approx([(step + 1) / 10 for step in range(total)])
