"""Which parameters are trained, and how.

Biases and normalisation parameters are the ones with a single dimension. The recipes of LARS take neither
weight decay nor adaptation on them; BYOL and UniVIP on COCO decay everything.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from univip.config import OptimConfig, OptimizerName
from univip.optim.lars import Lars
from univip.types import Method


def parameter_groups(online: nn.Module, *, exclude_bias_and_norm: bool) -> list[dict[str, Any]]:
    """Every trainable parameter of the online side, in one group or split in two, in order of definition.

    Args:
        online: The side with parameters.
        exclude_bias_and_norm: Put parameters of one dimension in a group without weight decay and adaptation.
    """
    trainable = [parameter for parameter in online.parameters() if parameter.requires_grad]
    if not exclude_bias_and_norm:
        return [{"params": trainable}]
    return [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1]},
        {
            "params": [parameter for parameter in trainable if parameter.ndim <= 1],
            "weight_decay": 0.0,
            "adapt": False,
        },
    ]


def make_optimizer(config: OptimConfig, online: nn.Module) -> Optimizer:
    """The configured optimizer over the online side; the engine sets each group's `lr` before every step."""
    groups = parameter_groups(online, exclude_bias_and_norm=config.exclude_bias_and_norm)
    if config.name is OptimizerName.lars:
        return Lars(
            groups,
            lr=config.base_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust=config.lars_trust,
        )
    return torch.optim.SGD(
        groups, lr=config.base_lr, momentum=config.momentum, weight_decay=config.weight_decay
    )


def check_groups(optimizer: Optimizer, method: Method) -> None:
    """Refuse to train if a parameter would be forgotten, stepped twice, or belongs to the target.

    A parameter created after the optimizer is never trained and nothing else would show it.

    Raises:
        RuntimeError: A defect of the method, not of the request; names the parameters.
    """
    stepped = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    wrong = [
        f"online.{name} is in {stepped[id(parameter)]} groups"
        for name, parameter in method.online.named_parameters()
        if stepped[id(parameter)] != int(parameter.requires_grad)
    ]
    wrong += [
        f"target.{name} is trained"
        for name, parameter in method.target.named_parameters()
        if parameter.requires_grad or id(parameter) in stepped
    ]
    if wrong:
        raise RuntimeError(
            "every trainable parameter of the online side must be in exactly one group, but "
            + "; ".join(wrong)
        )
