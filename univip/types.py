"""The few shapes that everything passes around.

Legend: N boxes, n images of a (micro-)batch, K instances per image, S scene edge, I instance edge, D
embedding. Boxes are int32 [N, 4] in xywh: x, y the top-left pixel, w, h in pixels, so a box covers columns x
.. x + w - 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # the command line reads image headers with these types, and never loads torch
    from torch import Tensor, nn

Boxes = npt.NDArray[np.int32]
Image = npt.NDArray[np.uint8]  # [H, W, 3] RGB


class Views(NamedTuple):
    """What a method sees: augmented, normalised, on the device, float32."""

    scenes: Tensor  # [n, 2, 3, S, S]; scene 0 went through T1, scene 1 through T2
    online_instances: Tensor  # [n, K, 3, I, I]; K = 0 where the method uses none
    target_instances: Tensor  # [n, K, 3, I, I]
    has_instances: Tensor  # bool [n], on the host; False for images too small to hold instances


class LossTerms(NamedTuple):
    """Losses per image, so that any split of a batch adds up to the same mean."""

    total: Tensor  # [n], carries the gradient
    terms: dict[str, Tensor]  # each [n], unweighted, scaled by cosine_scale; `total` is their sum
    statistics: dict[str, Tensor]  # scalars, detached


class Method(Protocol):
    """A pre-training method: an online side with parameters, a target side that follows it."""

    @property
    def online(self) -> nn.Module:
        """Backbone and heads with trainable parameters; `online.backbone` is what a run is for."""
        ...

    @property
    def target(self) -> nn.Module:
        """The side without gradient; every parameter has its namesake in `online`."""
        ...

    def losses(self, views: Views) -> LossTerms:
        """Losses of each image of one micro-batch."""
        ...

    def update_target(self, momentum: float) -> None:
        """Move the target's parameters towards the online ones."""
        ...
