"""Photometric augmentation T1 and T2 (table 6 of BYOL), batched on the device, drawn per image on the host.

Each image has parameters of its own, drawn from keyed streams where the pixels are read, so an image looks
the same wherever and next to whatever it is augmented. To keep that true to the last bit, everything below is
elementwise, except for the mean brightness, which is summed in float64.

Order: flip, colour jitter (its four operations in random order), grayscale, blur, solarize, normalise. Values
are clamped to [0, 1] before the jitter and never after the normalisation.

Legend: N images, H and W their edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)
SOLARIZE_THRESHOLD = 128 / 255

FLIP_PROBABILITY = 0.5
JITTER_PROBABILITY = 0.8
GRAY_PROBABILITY = 0.2
SPREAD = (0.4, 0.4, 0.2, 0.1)  # of brightness, contrast, saturation (around 1) and hue (around 0, in turns)
SIGMA = (0.1, 2.0)  # of the blur, px

NUM_DRAWS = 14  # uniform numbers that the parameters of one image take


class Recipe(NamedTuple):
    """Where T1 and T2 differ."""

    blur_probability: float
    solarize_probability: float


T1 = Recipe(blur_probability=1.0, solarize_probability=0.0)
T2 = Recipe(blur_probability=0.1, solarize_probability=0.2)


class AugmentParameters(NamedTuple):
    """What happens to each of N images. Kept on the host, where the decisions of `augment` are made."""

    flip: npt.NDArray[np.bool_]  # [N]
    order: npt.NDArray[np.int8]  # [N, 4] jitter operations in the order they are applied; -1: no jitter
    factors: npt.NDArray[np.float32]  # [N, 4] brightness, contrast, saturation, hue
    gray: npt.NDArray[np.bool_]  # [N]
    sigma: npt.NDArray[np.float32]  # [N] of the blur in px; 0: no blur
    solarize: npt.NDArray[np.bool_]  # [N]


def draw_parameters(recipe: Recipe, uniform: npt.NDArray[np.float64]) -> AugmentParameters:
    """Parameters of N images from uniform numbers [N, NUM_DRAWS] in [0, 1)."""
    flip, jitter, gray, blur, sigma, solarize = uniform[:, :6].T
    order = np.argsort(uniform[:, 6:10], axis=1, kind="stable")
    low, high = SIGMA
    return AugmentParameters(
        flip=flip < FLIP_PROBABILITY,
        order=np.where(jitter[:, None] < JITTER_PROBABILITY, order, -1).astype(np.int8),
        factors=((1, 1, 1, 0) + (2 * uniform[:, 10:14] - 1) * SPREAD).astype(np.float32),
        gray=gray < GRAY_PROBABILITY,
        sigma=np.where(blur < recipe.blur_probability, low + (high - low) * sigma, 0).astype(np.float32),
        solarize=solarize < recipe.solarize_probability,
    )


def concatenate(parameters: Sequence[AugmentParameters]) -> AugmentParameters:
    """The parameters of all images together, in order."""
    return AugmentParameters(*(np.concatenate(column) for column in zip(*parameters, strict=True)))


def augment(images: Tensor, parameters: AugmentParameters) -> Tensor:
    """Augment and normalise.

    Args:
        images: uint8 [N, 3, H, W], or float in [0, 1] but for the overshoot of a resampler.
        parameters: One row for each image.

    Returns:
        float32 [N, 3, H, W], normalised by the mean and deviation of ImageNet, unclamped.
    """
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    x = x.clamp(0, 1)
    _apply(x, parameters.flip, _flip)
    for place in range(parameters.order.shape[1]):
        for operation, adjust in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = parameters.order[:, place] == operation
            _apply(x, chosen, adjust, parameters.factors[:, operation])
    _apply(x, parameters.gray, _gray)
    _apply(x, parameters.sigma > 0, _blur, parameters.sigma)
    _apply(x, parameters.solarize, _solarize)
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def _apply(
    x: Tensor,
    chosen: npt.NDArray[np.bool_],
    operation: Callable[..., Tensor],
    amounts: npt.NDArray[np.float32] | None = None,
) -> None:
    """Change the chosen images in place, each by its amount [N, 1, 1, 1] where the operation takes one."""
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    index = torch.from_numpy(rows).to(x.device)
    arguments = () if amounts is None else (torch.from_numpy(amounts[rows, None, None, None]).to(x.device),)
    x[index] = operation(x[index], *arguments)


def _flip(x: Tensor) -> Tensor:
    return x.flip(-1)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    # Row by row, then over rows: the order of a sum over a whole image depends on how many images there are.
    mean = _luma(x).double().sum(-1, keepdim=True).sum(-2, keepdim=True) / (x.shape[-1] * x.shape[-2])
    return (factor * x + (1 - factor) * mean.float()).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * _luma(x)).clamp(0, 1)


def _hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue at equal value and chroma.

    Written with chroma, not saturation: that is chroma / value, which is infinite on the slightly negative
    pixels that bicubic resampling makes beside black, and NaN after that. Here chroma is the only divisor.
    """
    red, green, blue = x.unbind(1)
    value = x.amax(1)
    chroma = value - x.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sextant = sextant + 6 * turns[:, 0]
    channels = []
    for offset in (5, 3, 1):
        k = torch.remainder(sextant + offset, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _gray(x: Tensor) -> Tensor:
    return _luma(x).expand_as(x)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with mirrored borders, tap by tap: a convolution may sum differently in another batch."""
    radius = kernel_size(x.shape[-1]) // 2
    distance = torch.arange(radius + 1, device=x.device)[:, None, None, None, None]
    weights = torch.exp(-0.5 * (distance / sigma).square())  # [radius + 1, N, 1, 1, 1]
    weights = weights / (weights[0] + 2 * weights[1:].sum(0))
    for dim in (-1, -2):
        size = x.shape[dim]
        padded = F.pad(x, (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius), mode="reflect")
        x = weights[0] * x
        for tap in range(1, radius + 1):
            pair = padded.narrow(dim, radius - tap, size) + padded.narrow(dim, radius + tap, size)
            x += weights[tap] * pair
    return x


def kernel_size(edge: int) -> int:
    """Taps of the blur for images of `edge` px: the odd number next to a tenth, 23 at 224 px."""
    return max(3, 2 * round((edge / 10 - 1) / 2) + 1)


def _solarize(x: Tensor) -> Tensor:
    return torch.where(x >= SOLARIZE_THRESHOLD, 1 - x, x)


def _luma(x: Tensor) -> Tensor:
    """Brightness [N, 1, H, W]."""
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]
