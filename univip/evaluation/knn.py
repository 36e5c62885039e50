"""Weighted nearest neighbours on frozen features, and what they score.

A query gets from each of its k nearest bank images, by cosine, a vote of exp(cos / temperature) for that
image's classes (Wu et al. 2018). One set of labels serves both kinds of task: multi-hot, with one class per
row for single-label data.

Legend: Q queries, B bank images, D dimensions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from univip.losses.regression import unit

CHUNK = 256  # queries compared with the whole bank at a time; bounds memory at 256 * B similarities


@torch.no_grad()
def knn_scores(
    queries: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    neighbours: int,
    temperature: float,
    leave_one_out: bool,
) -> Tensor:
    """Class scores of each query.

    Args:
        queries: [Q, D] features, any length.
        bank: [B, D] features.
        bank_labels: bool [B, C].
        neighbours: k; a smaller bank is used whole.
        temperature: Of the votes.
        leave_one_out: The queries are the bank: row i does not vote for itself. Equal features in other rows
            do.

    Returns:
        Sums of votes, float32 [Q, C].
    """
    directions, bank_directions = unit(queries), unit(bank)
    k = min(neighbours, len(bank) - leave_one_out)
    scores = []
    for start in range(0, len(directions), CHUNK):
        similarity = directions[start : start + CHUNK] @ bank_directions.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest = similarity.topk(k, dim=1)
        votes = (nearest.values / temperature).exp()
        scores.append((votes[:, :, None] * bank_labels[nearest.indices]).sum(dim=1))
    return torch.cat(scores)


def top1_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of queries whose best class is one of theirs, from scores [Q, C] and bool labels [Q, C]."""
    best = scores.argmax(dim=1, keepdim=True)
    return float(labels.gather(1, best).double().mean())


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Area under the precision-recall steps of one class, ties broken by nobody: equal scores enter together.

    Args:
        scores: [Q].
        positives: bool [Q], at least one True.
    """
    ranked, order = scores.sort(descending=True)
    found = positives[order].double().cumsum(dim=0)
    last_of_tie = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    found_here = found[last_of_tie]
    seen_here = last_of_tie.nonzero().squeeze(1) + 1
    gained = found_here.diff(prepend=found.new_zeros(1))
    return float((gained * found_here / seen_here).sum() / found[-1])


def mean_average_precision(scores: Tensor, labels: Tensor, known: Tensor) -> float:
    """Mean over the classes that have a positive; NaN if none has.

    Args:
        scores: [Q, C].
        labels: bool [Q, C].
        known: bool [Q, C]; where False, the image does not count for the class (see `labels`).
    """
    precisions = [
        average_precision(scores[known[:, c], c], labels[known[:, c], c])
        for c in range(labels.shape[1])
        if bool((labels[:, c] & known[:, c]).any())
    ]
    return sum(precisions) / len(precisions) if precisions else float("nan")
