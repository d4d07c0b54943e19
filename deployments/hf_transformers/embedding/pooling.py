"""From the vectors of tokens to one vector of a text.

The formulas are those of sentence-transformers' modules `Pooling`, `Dense` and `Normalize`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states `[texts, tokens, size]` and mask `[texts, tokens]` to `[texts, size]`."""


def pool_cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the first token's vector, wherever the padding is."""
    first = mask.argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]


def pool_last(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the last token's vector, wherever the padding is."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def pool_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the tokens' vectors."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pool_mean_sqrt(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the tokens' vectors over the square root of their number."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()


def pool_weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean weighted by the tokens' positions, from 1."""
    weights = (mask.cumsum(dim=1) * mask).unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def pool_max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns each value's largest among the tokens."""
    hidden = hidden.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(hidden.dtype).min)
    return hidden.amax(dim=1)


POOLS: dict[str, Pool] = {
    "cls": pool_cls,
    "lasttoken": pool_last,
    "mean": pool_mean,
    "mean_sqrt_len_tokens": pool_mean_sqrt,
    "weightedmean": pool_weighted_mean,
    "max": pool_max,
}


def pool(names: Sequence[str], hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the vectors of texts; several ways of pooling are put together side by side."""
    return torch.cat([POOLS[name](hidden, mask) for name in names], dim=-1)


def normalize(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the vectors scaled to length 1."""
    return torch.nn.functional.normalize(vectors, dim=-1)
