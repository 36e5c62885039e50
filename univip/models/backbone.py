"""Backbones: images [n, 3, H, W] to features [n, dim] by global average pooling.

The ResNets are torchvision's, without the classifier and without weights, so their state dict loads wherever
a torchvision ResNet is expected. The last normalisation of a residual block starts at 1, torchvision's
default (`zero_init_residual=False`), as in BYOL on COCO. `tiny` is a small real network for tests, the demo
and CPUs.
"""

from __future__ import annotations

import torchvision.models
from torch import Tensor, nn

from univip.config import Backbone
from univip.models.norm import SynchronizedBatchNorm

FEATURE_DIM = {Backbone.tiny: 128, Backbone.resnet18: 512, Backbone.resnet50: 2048}


def make_backbone(name: Backbone) -> nn.Module:
    """A freshly initialised backbone with synchronised normalisation and `FEATURE_DIM[name]` outputs.

    Args:
        name: Which one. The weights come from torch's global generator: seed it for a reproducible start.
    """
    if name is Backbone.tiny:
        return TinyBackbone()
    build = {Backbone.resnet18: torchvision.models.resnet18, Backbone.resnet50: torchvision.models.resnet50}[
        name
    ]
    model: nn.Module = build(weights=None, norm_layer=SynchronizedBatchNorm)
    model.fc = nn.Identity()
    return model


class TinyBackbone(nn.Module):
    """Four strided stages of convolution, normalisation and ReLU; inputs from 16 px."""

    WIDTHS = (32, 64, 96, 128)

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for inputs, outputs in zip((3, *self.WIDTHS), self.WIDTHS, strict=False):
            convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            stages += [convolution, SynchronizedBatchNorm(outputs), nn.ReLU(inplace=True)]
        self.stages = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        """Features [n, 128] of images [n, 3, H, W]."""
        features: Tensor = self.stages(images)
        return features.mean(dim=(2, 3))
