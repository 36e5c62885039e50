"""UniVIP: BYOL on scenes, plus scene against its instances, plus instance against instance (paper eq. 13).

    L = L_scene + L_scene-instance + L_instance                all with weight 1 and the same cosine scale
    L_scene-instance = L(I, s1) + L(I, s2),  I = f_linear(concat(o_1 .. o_K))                  (eq. 7 to 9)
    L_instance = optimal transport between online and target instances                       (eq. 10 to 12)

f_linear belongs to the online side; the target has no counterpart. The instances are one forward of their
own, of only those images that have some: an image too small to hold instances contributes 0 to both terms,
and its placeholder pixels reach neither the loss nor the normalisation statistics. A rank left without
instances runs the forward on zero rows, because the other ranks wait for it in the synchronised
normalisation.

Legend: n images, r of them with instances, K instances per image, S and I scene and instance edge, D
    embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from univip.config import MethodConfig, ModelConfig
from univip.losses.regression import cosine_loss
from univip.losses.transport import instance_loss
from univip.methods.byol import Online, Target, embed_scenes, scene_loss, scene_statistics
from univip.models.momentum import update_target
from univip.types import LossTerms, Views


class OnlineWithInstances(Online):
    """f and f_linear."""

    def __init__(self, config: ModelConfig, num_instances: int) -> None:
        super().__init__(config)
        self.instance_projection = nn.Linear(num_instances * config.embedding_dim, config.embedding_dim)


class UniVip:
    """UniVIP on scene pairs and the K instances they share."""

    def __init__(self, config: MethodConfig, model: ModelConfig, num_instances: int) -> None:
        self.online = OnlineWithInstances(model, num_instances)
        self.target = Target(self.online)
        self._config = config

    def losses(self, views: Views) -> LossTerms:
        """The three terms of each image; may run under autocast, the losses themselves are at least fp32."""
        scale = self._config.cosine_scale
        rows = views.has_instances.nonzero().squeeze(1).to(views.scenes.device)
        scenes = embed_scenes(self.online, self.target, views.scenes)
        online = _embed_instances(self.online, views.online_instances[rows])
        target = _embed_instances(self.target, views.target_instances[rows])
        whole = self.online.instance_projection(online.flatten(1))
        correspondence = instance_loss(
            online,
            target,
            scenes.online[rows],
            scenes.target[rows],
            transport=self._config.transport,
            epsilon=self._config.sinkhorn_epsilon,
            num_iterations=self._config.sinkhorn_iterations,
            scale=scale,
        )
        scene = scene_loss(scenes, scale=scale)
        scene_instance = cosine_loss(whole[:, None, :], scenes.target[rows], scale=scale).sum(dim=1)
        none = torch.zeros_like(scene)
        terms = {
            "scene": scene,
            "scene_instance": none.index_copy(0, rows, scene_instance),
            "instance": none.index_copy(0, rows, correspondence.loss),
        }
        return LossTerms(
            total=torch.stack(list(terms.values())).sum(dim=0),
            terms=terms,
            statistics=scene_statistics(scenes) | {"sinkhorn_residual": correspondence.residual},
        )

    def update_target(self, momentum: float) -> None:
        """Move the target's parameters towards the online ones."""
        update_target(self.target, self.online, momentum=momentum)


def _embed_instances(network: nn.Module, instances: Tensor) -> Tensor:
    """Embeddings [r, K, D] of instances [r, K, 3, I, I], all in one forward."""
    embeddings: Tensor = network(instances.flatten(0, 1))
    return embeddings.view(*instances.shape[:2], embeddings.shape[1])
