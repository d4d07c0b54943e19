"""Binds rows of a batch to compiled grammars."""

from __future__ import annotations

from typing import Any

import torch


def start_matcher(constraint: Any) -> Any:
    """Returns what follows one answer through a grammar.

    Args:
        constraint: An `xgrammar.CompiledGrammar`, or None.
    """
    if constraint is None:
        return None
    import xgrammar

    return xgrammar.GrammarMatcher(constraint)


def mask_rows(scores: torch.Tensor, matchers: dict[int, Any]) -> None:
    """Sets the logits of tokens that a grammar does not allow next to minus infinity, in place.

    Args:
        scores: `[rows, vocabulary]`, float32.
        matchers: Those of some rows.
    """
    import xgrammar

    mask = xgrammar.allocate_token_bitmask(len(scores), scores.shape[-1])
    bound = [
        row
        for row, matcher in matchers.items()
        if not matcher.is_terminated() and matcher.fill_next_token_bitmask(mask, row)
    ]
    if bound:
        xgrammar.apply_token_bitmask_inplace(scores, mask.to(scores.device), indices=bound)
