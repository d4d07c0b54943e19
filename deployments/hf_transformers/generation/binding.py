"""Binds rows of a batch to compiled grammars, as long as that takes little time.

An answer that begins with thoughts is bound behind them.

What a token costs may grow with the answer, where a grammar can be read in many ways: no trial of
its beginning shows that, and every row of the batch waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

SLOW_STEP_S = 0.02
"""CPU time for one token of one row from which on it is slow."""
MAX_SLOW_STEPS = 8
"""How many slow ones in a row end the answer; one that takes several times as long counts as
several, and each that is not slow takes one off."""


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How an answer thinks first.

    Attributes:
        begin_id: The token that begins the thoughts.
        end_id: The token that ends them.
        max_tokens: The most tokens between the two; the next one ends them.
        is_begun: Whether the prompt has begun them; else the answer may do so, or not think.
    """

    begin_id: int
    end_id: int
    max_tokens: int
    is_begun: bool = False


class Follower:
    """Follows one answer through a grammar, and stops when that takes too long.

    Args:
        matcher: An `xgrammar.GrammarMatcher` at its start; None binds the thoughts' length alone.
        thoughts: How the answer thinks first, if it does.
        end_ids: Tokens that end an answer, which thoughts have none of.

    Attributes:
        problem: Why it stopped, for the client: then nothing binds the answer, which must fail.
    """

    def __init__(
        self, matcher: Any, thoughts: Thoughts | None = None, end_ids: Iterable[int] = ()
    ) -> None:
        self.problem: str | None = None
        self._matcher = matcher
        self._thoughts = thoughts
        self._is_thinking = thoughts is not None and thoughts.is_begun
        self._num_thought = 0
        self._end_ids = list(end_ids)
        self._filled_s = 0.0
        self._num_slow = 0

    def fill(self, mask: torch.Tensor, row: int) -> bool:
        """Writes the tokens that may come next into a row of the mask; False where all may."""
        if self.problem is not None:
            return False
        if self._thoughts is not None and self._is_thinking:
            self._fill_thought(mask[row], self._thoughts)
            return True
        if self._matcher is None or self._matcher.is_terminated():
            return False
        started = time.thread_time()
        filled = bool(self._matcher.fill_next_token_bitmask(mask, row))
        self._filled_s = time.thread_time() - started
        if self._thoughts is not None and filled:
            _allow(mask[row], self._thoughts.begin_id)
        return filled

    def _fill_thought(self, mask: torch.Tensor, thoughts: Thoughts) -> None:
        is_over = self._num_thought >= thoughts.max_tokens
        mask.fill_(0 if is_over else -1)
        for token in () if is_over else self._end_ids:
            mask[token // 32] &= ~_bit(token)
        _allow(mask, thoughts.end_id)

    def accept(self, token: int) -> None:
        """Takes the token that was chosen."""
        if self.problem is not None or self._is_thought(token) or self._matcher is None:
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

    def _is_thought(self, token: int) -> bool:
        """Returns whether a token belongs to the thoughts, or marks where they begin or end."""
        thoughts = self._thoughts
        if thoughts is None:
            return False
        if not self._is_thinking:
            self._is_thinking = token == thoughts.begin_id
            self._thoughts = thoughts if self._is_thinking else None
            return self._is_thinking
        self._num_thought += 1
        if token == thoughts.end_id:
            self._thoughts = None
        return True


def _bit(token: int) -> int:
    """Returns the bit of a token in its word of a mask, an int32."""
    value = 1 << (token % 32)
    return value - (1 << 32) if value >= 1 << 31 else value


def _allow(mask: torch.Tensor, token: int) -> None:
    mask[token // 32] |= _bit(token)


def start_follower(
    constraint: Any, thoughts: Thoughts | None = None, end_ids: Iterable[int] = ()
) -> Follower | None:
    """Returns what follows one answer through a grammar, or None where nothing binds it.

    Args:
        constraint: An `xgrammar.CompiledGrammar`, or None.
        thoughts: How the answer thinks first, if it does.
        end_ids: Tokens that end an answer.
    """
    if constraint is None:
        return None if thoughts is None else Follower(None, thoughts, end_ids)
    import xgrammar

    return Follower(xgrammar.GrammarMatcher(constraint), thoughts, end_ids)


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
