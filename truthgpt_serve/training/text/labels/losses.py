"""Losses on the vectors of texts, all of length 1."""

from __future__ import annotations

import torch
from torch.nn import functional


def ranking_loss(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns how badly each anchor tells its positive from all other texts of the batch.

    The multiple negatives ranking loss of Henderson et al., "Efficient Natural Language Response
    Suggestion for Smart Reply" (2017), as sentence-transformers computes it.

    Args:
        anchors: `[rows, size]`.
        positives: `[rows, size]`.
        negatives: `[texts, size]`, of any of the rows; may be none.
        scale: Factor on the cosines.
    """
    scores = scale * anchors @ torch.cat([positives, negatives]).T
    wanted = torch.arange(len(anchors), device=anchors.device)
    return functional.cross_entropy(scores, wanted)


def triplet_loss(
    anchors: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, margin: float
) -> torch.Tensor:
    """Returns by how much positives are not nearer than negatives by the margin, by the cosine."""
    near, far = (anchors * positives).sum(-1), (anchors * negatives).sum(-1)
    return functional.relu(far - near + margin).mean()


def cosine_loss(firsts: torch.Tensor, seconds: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Returns the mean squared difference of the cosines of pairs and their scores `[rows]`."""
    return functional.mse_loss((firsts * seconds).sum(-1), scores)
