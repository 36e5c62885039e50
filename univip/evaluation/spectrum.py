"""How much of the embedding space a set of features fills. Collapse shows here before it shows in the loss.

Legend: n features, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from univip.losses.regression import unit


def feature_std(features: Tensor) -> Tensor:
    """Spread of features [n, D] on the unit sphere, a scalar.

    Standard deviation of the normalised features, averaged over dimensions, times sqrt(D): 1 for directions
    spread evenly, 0 if all agree. With n - 1 in the variance, for a rank may have few images; one feature
    alone gives 0.
    """
    spread = unit(features).std(dim=0, correction=min(1, len(features) - 1)).mean()
    return spread * math.sqrt(features.shape[1])


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023): exp of the entropy of the singular values of features [n, D].

    Between 1 (all on a line, or all zero) and min(n, D). The features are neither centred nor normalised, as
    there. Computed in float64 from the smaller Gram matrix: singular values below 1e-8 of the largest are
    lost, which does not move the entropy.
    """
    wide = features.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    shares = singular / singular.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(shares).sum().exp())
