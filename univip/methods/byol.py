"""BYOL: one scene predicts how a slowly moving copy of the network sees the other one.

The online side f = predictor(projector(backbone)) regresses the target side g = projector(backbone) of the
other scene, in both directions: L_scene = L(s1, s2) + L(s2, s1), L(x, y) = scale * (1 - cos(f(x), g(y)))
(paper eq. 4 and 5). The pieces are shared with UniVIP, which adds terms over instances.

Legend: n images, S scene edge, D embedding. Scene 1 went through T1, scene 2 through T2. Each scene is a
    forward of its
own, so normalisation sees one kind of view at a time.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from univip.config import MethodConfig, ModelConfig
from univip.evaluation.spectrum import feature_std
from univip.losses.regression import cosine_loss
from univip.models.backbone import FEATURE_DIM, make_backbone
from univip.models.heads import make_head
from univip.models.momentum import update_target
from univip.types import LossTerms, Views


class Target(nn.Module):
    """g: a copy of backbone and projector that no optimizer trains."""

    def __init__(self, online: Online) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(online.backbone)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Projections [n, D] of images [n, 3, H, W], without gradient."""
        projections: Tensor = self.projector(self.backbone(images))
        return projections


class Online(nn.Module):
    """f: backbone, projector and predictor."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = make_backbone(config.backbone)
        self.projector = make_head(FEATURE_DIM[config.backbone], config.hidden_dim, config.embedding_dim)
        self.predictor = make_head(config.embedding_dim, config.hidden_dim, config.embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Predictions [n, D] of images [n, 3, H, W]."""
        predictions: Tensor = self.predictor(self.projector(self.backbone(images)))
        return predictions


class Scenes(NamedTuple):
    """Both scenes as both sides see them; [n, 2, D] each."""

    online: Tensor
    target: Tensor


def embed_scenes(online: nn.Module, target: nn.Module, scenes: Tensor) -> Scenes:
    """Run both networks on each of the two scenes [n, 2, 3, S, S]."""
    return Scenes(
        online=torch.stack([online(scenes[:, 0]), online(scenes[:, 1])], dim=1),
        target=torch.stack([target(scenes[:, 0]), target(scenes[:, 1])], dim=1),
    )


def scene_loss(scenes: Scenes, *, scale: float) -> Tensor:
    """L_scene [n]: each scene of the online side against the other one of the target side."""
    return cosine_loss(scenes.online, scenes.target.flip(1), scale=scale).sum(dim=1)


def scene_statistics(scenes: Scenes) -> dict[str, Tensor]:
    """Spread of the embeddings of scene 1: about 1 when healthy, 0 when everything maps to one point.

    None of a single image, which has no spread and would look like a collapse.
    """
    if len(scenes.online) < 2:
        return {}
    return {
        "embedding_std_online": feature_std(scenes.online[:, 0].detach()),
        "embedding_std_target": feature_std(scenes.target[:, 0]),
    }


class Byol:
    """BYOL on scene pairs; ignores instances."""

    def __init__(self, config: MethodConfig, model: ModelConfig) -> None:
        self.online = Online(model)
        self.target = Target(self.online)
        self._scale = config.cosine_scale

    def losses(self, views: Views) -> LossTerms:
        """L_scene of each image; may run under autocast, the loss itself is at least fp32."""
        scenes = embed_scenes(self.online, self.target, views.scenes)
        loss = scene_loss(scenes, scale=self._scale)
        return LossTerms(loss, {"scene": loss}, scene_statistics(scenes))

    def update_target(self, momentum: float) -> None:
        """Move the target's parameters towards the online ones."""
        update_target(self.target, self.online, momentum=momentum)
