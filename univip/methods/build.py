"""From configuration to method."""

from __future__ import annotations

from univip.config import MethodConfig, MethodName, ModelConfig, ViewsConfig
from univip.methods.byol import Byol
from univip.methods.univip import UniVip
from univip.types import Method


def make_method(method: MethodConfig, model: ModelConfig, views: ViewsConfig) -> Method:
    """The configured method with fresh weights, complete: nothing is created later, in a first forward.

    Args:
        method: Which one, and its losses.
        model: Backbone and heads.
        views: Gives the number of instances per image.

    The weights come from torch's global generator: seed it first for a reproducible start.
    """
    if method.name is MethodName.byol:
        return Byol(method, model)
    return UniVip(method, model, views.num_instances)
