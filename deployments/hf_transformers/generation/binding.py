"""Binds rows of a batch to compiled grammars, as long as that takes little time.

What a token costs may grow with the answer, where a grammar can be read in many ways: no trial of
its beginning shows that, and every row of the batch waits for it.
"""

from __future__ import annotations

import time
from typing import Any

import torch

SLOW_STEP_S = 0.02
"""CPU time for one token of one row from which on it is slow."""
MAX_SLOW_STEPS = 8
"""How many slow ones in a row end the answer; one that takes several times as long counts as
several, and each that is not slow takes one off."""


class Follower:
    """Follows one answer through a grammar, and stops when that takes too long.

    Args:
        matcher: An `xgrammar.GrammarMatcher` at its start.

    Attributes:
        problem: Why it stopped, for the client: then nothing binds the answer, which must fail.
    """

    def __init__(self, matcher: Any) -> None:
        self.problem: str | None = None
        self._matcher = matcher
        self._filled_s = 0.0
        self._num_slow = 0

    def fill(self, mask: torch.Tensor, row: int) -> bool:
        """Writes the tokens that may come next into a row of the mask; False where all may."""
        if self.problem is not None or self._matcher.is_terminated():
            return False
        started = time.thread_time()
        filled = bool(self._matcher.fill_next_token_bitmask(mask, row))
        self._filled_s = time.thread_time() - started
        return filled

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        if self.problem is not None:
            return
        started = time.thread_time()
        self._matcher.accept_token(token)
        taken_s = self._filled_s + time.thread_time() - started
        self._filled_s = 0.0
        num_times = int(taken_s / SLOW_STEP_S)
        self._num_slow = self._num_slow + num_times if num_times else max(0, self._num_slow - 1)
        if self._num_slow >= MAX_SLOW_STEPS:
            self.problem = (
                f"the grammar that binds the answer takes {taken_s:.2g} s for one token: write it "
                "so that a text can be read in one way only, without repeated repetitions"
            )


def start_follower(constraint: Any) -> Follower | None:
    """Returns what follows one answer through a grammar.

    Args:
        constraint: An `xgrammar.CompiledGrammar`, or None.
    """
    if constraint is None:
        return None
    import xgrammar

    return Follower(xgrammar.GrammarMatcher(constraint))


def mask_rows(scores: torch.Tensor, followers: dict[int, Follower]) -> None:
    """Sets the logits of tokens that a grammar does not allow next to minus infinity, in place.

    Args:
        scores: `[rows, vocabulary]`, float32.
        followers: Those of some rows.
    """
    import xgrammar

    mask = xgrammar.allocate_token_bitmask(len(scores), scores.shape[-1])
    bound = [row for row, follower in followers.items() if follower.fill(mask, row)]
    if bound:
        xgrammar.apply_token_bitmask_inplace(scores, mask.to(scores.device), indices=bound)
