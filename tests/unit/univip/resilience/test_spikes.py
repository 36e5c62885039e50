"""The spike detector against numpy, and on the curves that training draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from univip.config import ResilienceConfig
from univip.resilience.guard import GRADIENT_RISE, LOSS_RISE, Guard, Health, Verdict
from univip.resilience.spikes import SpikeDetector

STEPS = 20_000
Curve = npt.NDArray[np.float64]
FINE = Health(state=False, loss=False, gradient=False)


def test_the_limit_is_median_and_median_deviation_as_numpy_has_them() -> None:
    draws = np.random.default_rng(0)
    for size in (1, 2, 7, 128):
        detector = SpikeDetector(size, threshold=5.0, min_rise=0.1)
        values = draws.standard_cauchy(size + 3)
        for value in values:
            detector.add(float(value))
        window = values[-size:]
        median = np.median(window)
        # 1 / the third quartile of the standard normal distribution
        deviation = np.median(np.abs(window - median)) / 0.6744897501960817

        expected = median + max(5.0 * deviation, 0.1 * abs(median))

        assert detector.limit == pytest.approx(expected, rel=1e-4)
        assert detector.usual == pytest.approx(median, rel=1e-12)


def test_before_the_window_is_full_there_is_no_limit() -> None:
    detector = SpikeDetector(2, threshold=5.0, min_rise=0.1)
    assert (detector.usual, detector.limit) == (None, None)

    detector.add(1.0)

    assert (detector.usual, detector.limit) == (1.0, None)


def heavy_tails(draws: np.random.Generator) -> Curve:
    """Gradient norms, log-normal and slow to change."""
    noise = draws.normal(size=STEPS)
    for step in range(1, STEPS):
        noise[step] = 0.7 * noise[step - 1] + 0.71 * noise[step]
    return np.exp(0.6 * noise)


def early_training(draws: np.random.Generator) -> Curve:
    """A steep fall, a plateau, a second, slow rise as the target network begins to move."""
    steps = np.arange(STEPS)
    mean = 6.0 * np.exp(-steps / 60.0) + 0.4 + 1.2 / (1.0 + np.exp(-(steps - 3000) / 300.0))
    return mean * np.exp(0.03 * draws.normal(size=STEPS))


def warm_up(draws: np.random.Generator) -> Curve:
    """A norm that grows with the learning rate, then shrinks along a cosine."""
    steps = np.arange(STEPS)
    rate = np.minimum(steps / 1000.0, 0.5 * (1.0 + np.cos(np.pi * steps / STEPS)))
    return (0.2 + 3.0 * rate) * np.exp(0.2 * draws.normal(size=STEPS))


def epochs(draws: np.random.Generator) -> Curve:
    """A loss that jumps up a little whenever an epoch begins."""
    return 2.0 + 0.25 * (np.arange(STEPS) % 500 < 60) + 0.02 * draws.normal(size=STEPS)


def odd_batches(draws: np.random.Generator) -> Curve:
    """One step in a hundred ten times as high."""
    return np.where(draws.random(STEPS) < 0.01, 10.0, 1.0) * np.exp(0.1 * draws.normal(size=STEPS))


CURVES = pytest.mark.parametrize("curve", [heavy_tails, early_training, warm_up, epochs, odd_batches])


@CURVES
def test_no_sound_curve_is_ever_rolled_back(curve: Callable[[np.random.Generator], Curve]) -> None:
    guard = Guard(ResilienceConfig())
    values = curve(np.random.default_rng(1))

    # The same curve as loss and as gradient norm: the stricter of the two rules counts.
    judgements = [guard.judge(FINE, loss=float(value), gradient_norm=float(value)) for value in values]

    assert {judgement.verdict for judgement in judgements} == {Verdict.ok}
    assert sum(judgement.reason == "spike" for judgement in judgements) < 0.02 * STEPS


@CURVES
@pytest.mark.parametrize(("number", "rise"), [("loss", LOSS_RISE), ("gradient_norm", GRADIENT_RISE)])
def test_a_run_that_leaves_the_good_path_for_good_is_rolled_back_as_soon_as_the_row_is_long_enough(
    curve: Callable[[np.random.Generator], Curve], number: str, rise: float
) -> None:
    limits = ResilienceConfig()
    guard = Guard(limits)
    values = curve(np.random.default_rng(2))[:1000]
    for value in values:
        guard.judge(FINE, loss=float(value), gradient_norm=float(value))
    gone = float(20.0 * (1.0 + rise) * values.max())

    verdicts = []
    while len(verdicts) < 2 * limits.max_consecutive_spikes and Verdict.rollback not in verdicts:
        numbers = {"loss": float(values[-1]), "gradient_norm": float(values[-1])} | {number: gone}
        verdicts.append(guard.judge(FINE, **numbers).verdict)

    assert len(verdicts) <= limits.max_consecutive_spikes
    assert verdicts[-1] is Verdict.rollback
