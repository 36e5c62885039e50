from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from torch import Tensor

from univip.data.augment import (
    MEAN,
    NUM_DRAWS,
    STD,
    T1,
    T2,
    AugmentParameters,
    Recipe,
    _hue,
    augment,
    concatenate,
    draw_parameters,
    kernel_size,
)


@dataclass(frozen=True)
class One:
    """Parameters of one image, by name; nothing happens by default."""

    flip: bool = False
    order: tuple[int, int, int, int] = (-1, -1, -1, -1)
    factors: tuple[float, float, float, float] = (1, 1, 1, 0)
    gray: bool = False
    sigma: float = 0
    solarize: bool = False


def parameters(*images: One) -> AugmentParameters:
    return AugmentParameters(
        flip=np.array([one.flip for one in images]),
        order=np.array([one.order for one in images], np.int8),
        factors=np.array([one.factors for one in images], np.float32),
        gray=np.array([one.gray for one in images]),
        sigma=np.array([one.sigma for one in images], np.float32),
        solarize=np.array([one.solarize for one in images]),
    )


def photos(count: int = 1, edge: int = 48, seed: int = 0) -> Tensor:
    """Images with smooth parts, edges, black, white and gray."""
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, edge, edge), dtype=torch.uint8)
    images[:, :, : edge // 4] = 0
    images[:, :, edge // 4 : edge // 3] = 255
    images[:, :, edge // 3 : edge // 2] = images[:, :1, edge // 3 : edge // 2]
    return images


def plain(images: Tensor, *ones: One) -> Tensor:
    """Augmented, with the normalisation taken back."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return augment(images, parameters(*ones)) * std + mean


def random_parameters(recipe: Recipe, count: int, seed: int = 0) -> AugmentParameters:
    return draw_parameters(recipe, np.random.default_rng(seed).random((count, NUM_DRAWS)))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_nothing_but_normalisation_happens_without_parameters():
    images = photos()

    expected = reference.normalize(images.float() / 255, list(MEAN), list(STD))
    close(augment(images, parameters(One())), expected)


def test_flip_mirrors_left_and_right():
    images = photos()

    close(plain(images, One(flip=True))[0], reference.horizontal_flip(images[0]).float() / 255)


@pytest.mark.parametrize("factor", [0.6, 0.83, 1.0, 1.4])
@pytest.mark.parametrize(
    ("operation", "adjust"),
    [(0, reference.adjust_brightness), (1, reference.adjust_contrast), (2, reference.adjust_saturation)],
)
def test_brightness_contrast_and_saturation_agree_with_torchvision(operation, adjust, factor: float):
    images = photos()
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[operation] = factor

    one = One(order=(operation, -1, -1, -1), factors=tuple(factors))

    close(plain(images, one)[0], adjust(images[0].float() / 255, factor))


@pytest.mark.parametrize("turns", [-0.1, -0.013, 0.0, 0.05, 0.1, 0.5])
def test_hue_agrees_with_torchvision(turns: float):
    images = photos(edge=64)

    one = One(order=(3, -1, -1, -1), factors=(1, 1, 1, turns))

    close(plain(images, one)[0], reference.adjust_hue(images[0].float() / 255, turns))


def test_jitter_follows_its_order():
    images = photos()
    adjust = [
        (reference.adjust_brightness, 1.37),
        (reference.adjust_contrast, 0.65),
        (reference.adjust_saturation, 1.2),
        (reference.adjust_hue, 0.08),
    ]
    results = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        expected = images[0].float() / 255
        for operation in order:
            function, amount = adjust[operation]
            expected = function(expected, amount)
        results.append(plain(images, One(order=order, factors=(1.37, 0.65, 1.2, 0.08)))[0])
        close(results[-1], expected)
    assert not torch.allclose(results[0], results[1], atol=1e-3)


def test_gray_agrees_with_torchvision():
    images = photos()

    expected = reference.rgb_to_grayscale(images[0].float() / 255, num_output_channels=3)
    close(plain(images, One(gray=True))[0], expected)


@pytest.mark.parametrize(("edge", "taps"), [(224, 23), (96, 9), (64, 7), (32, 3), (16, 3)])
def test_blur_agrees_with_torchvision_at_a_tenth_of_the_edge(edge: int, taps: int):
    images = photos(edge=edge)
    for sigma in (0.1, 0.7, 2.0):
        expected = reference.gaussian_blur(images[0].float() / 255, [taps, taps], [sigma, sigma])
        close(plain(images, One(sigma=sigma))[0], expected)
    assert kernel_size(edge) == taps


def test_solarize_agrees_with_torchvision():
    images = photos()

    expected = reference.solarize(images[0].float() / 255, 128 / 255)
    close(plain(images, One(solarize=True))[0], expected)


def test_the_whole_chain_keeps_the_order_of_the_table():
    images = photos()
    expected = reference.horizontal_flip(images[0].float() / 255)
    expected = reference.adjust_brightness(expected, 1.3)
    expected = reference.rgb_to_grayscale(expected, num_output_channels=3)
    expected = reference.gaussian_blur(expected, [5, 5], [1.1, 1.1])
    expected = reference.solarize(expected, 128 / 255)

    one = One(True, (0, -1, -1, -1), (1.3, 1, 1, 0), True, 1.1, True)
    images = torch.cat([images, images])

    close(plain(images, One(), one)[1], expected)


def test_nothing_is_clamped_after_normalisation():
    black_and_white = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    black_and_white[..., 4:] = 255

    result = augment(black_and_white, parameters(One()))

    assert result.min().item() == pytest.approx(-0.485 / 0.229, abs=1e-5)
    assert result.max().item() == pytest.approx((1 - 0.406) / 0.225, abs=1e-5)


@pytest.mark.parametrize("turns", [-0.1, 0.1])
def test_hue_of_undershooting_pixels_is_a_number(turns: float):
    undershoot = torch.tensor([0.0, -0.01, -0.005]).view(1, 3, 1, 1).repeat(1, 1, 8, 8)
    undershoot[..., 4:] = torch.tensor([1.02, 1.0, 1.01]).view(3, 1, 1)
    one = One(order=(3, 0, 1, 2), factors=(1, 1, 1, turns))

    assert torch.isfinite(_hue(undershoot, torch.full((1, 1, 1, 1), turns))).all()
    assert torch.isfinite(augment(undershoot, parameters(one))).all()


def test_values_are_clamped_before_the_jitter():
    over = torch.full((1, 3, 8, 8), 1.2)

    darker = plain(over, One(order=(0, -1, -1, -1), factors=(0.5, 1, 1, 0)))

    close(darker, torch.full_like(darker, 0.5))


@pytest.mark.parametrize("recipe", [T1, T2])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_does_not_depend_on_its_neighbours_to_the_last_bit(recipe: Recipe, threads: int):
    images, chosen = photos(7, edge=65), random_parameters(recipe, 7, seed=5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = augment(images, chosen)
        alone = [
            augment(images[i : i + 1], AugmentParameters(*(part[i : i + 1] for part in chosen)))
            for i in range(7)
        ]
        some = augment(images[2:7], AugmentParameters(*(part[2:7] for part in chosen)))
    finally:
        torch.set_num_threads(before)

    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[2:], some)


def test_the_input_is_left_alone():
    images = photos(4).float() / 255
    before = images.clone()
    augment(images, random_parameters(T2, 4))

    assert torch.equal(images, before)


def test_no_images_are_no_error():
    assert augment(photos(0), random_parameters(T1, 0)).shape == (0, 3, 48, 48)


@pytest.mark.parametrize(("recipe", "blur", "solarize"), [(T1, 1.0, 0.0), (T2, 0.1, 0.2)])
def test_probabilities_and_ranges_are_those_of_the_table(recipe: Recipe, blur: float, solarize: float):
    count = 20_000
    drawn = random_parameters(recipe, count)

    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert (drawn.order[:, 0] >= 0).mean() == pytest.approx(0.8, abs=0.02)
    assert drawn.gray.mean() == pytest.approx(0.2, abs=0.02)
    assert (drawn.sigma > 0).mean() == pytest.approx(blur, abs=0.02)
    assert drawn.solarize.mean() == pytest.approx(solarize, abs=0.02)
    low, high = drawn.factors.min(0), drawn.factors.max(0)
    assert low.tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.001)
    assert high.tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.001)
    sigma = drawn.sigma[drawn.sigma > 0]
    assert (sigma.min(), sigma.max()) == pytest.approx((0.1, 2.0), abs=0.01)
    jittered = drawn.order[drawn.order[:, 0] >= 0]
    orders, times = np.unique(jittered, axis=0, return_counts=True)
    assert len(orders) == 24
    assert times.tolist() == pytest.approx([0.8 * count / 24] * 24, rel=0.2)


def test_decisions_are_independent_of_each_other():
    drawn = random_parameters(Recipe(0.5, 0.5), 20_000)
    decisions = [drawn.flip, drawn.order[:, 0] >= 0, drawn.gray, drawn.sigma > 0, drawn.solarize]
    numbers = [*np.array(decisions, float), *drawn.factors.T, drawn.order[:, 0] == 0]

    correlation = np.corrcoef(numbers)
    np.fill_diagonal(correlation, 0)
    correlation[1, -1] = correlation[-1, 1] = 0  # an order exists only where there is jitter

    assert np.abs(correlation).max() < 0.04


def test_concatenate_keeps_the_rows():
    one, two = random_parameters(T1, 2, seed=1), random_parameters(T2, 3, seed=2)
    both = concatenate([one, two])

    assert all(
        np.array_equal(whole, np.concatenate([a, b])) for whole, a, b in zip(both, one, two, strict=True)
    )
