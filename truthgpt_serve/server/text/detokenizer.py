"""Turns tokens into text as they come, for families that make texts token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CONTEXT_TOKENS = 6
"""Tokens of the prompt before the answer: some decoders leave out a space at the beginning."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for the first bytes of a character."""


class Detokenizer:
    """Gives text in pieces of whole characters; joined they are the text of all tokens.

    A piece is the difference of two decodings with the same beginning, since some tokenizers write
    a token differently at the start of a text.

    Args:
        decode: The text of some tokens.
        prompt: The tokens before the first.
        max_held: Tokens after which bytes that never become a character are let through; None for
            none.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt: Sequence[int] = (),
        *,
        max_held: int | None = None,
    ) -> None:
        self._decode = decode
        self._max_held = max_held
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._tokens)
        self._first = 0

    def push(self, token: int) -> str:
        """Takes a token; returns the text that is certain by now, which often is empty."""
        self._tokens.append(token)
        return self._new(hold=True)

    def flush(self) -> str:
        """Returns what was held back, at the end of the text."""
        return self._new(hold=False)

    def _new(self, *, hold: bool) -> str:
        known = self._decode(self._tokens[self._first : self._read])
        text = self._decode(self._tokens[self._first :])
        if hold and (len(text) <= len(known) or self._is_unfinished(text)):
            return ""
        self._first = self._read
        self._read = len(self._tokens)
        return text[len(known) :]

    def _is_unfinished(self, text: str) -> bool:
        num_held = len(self._tokens) - self._read
        is_over = self._max_held is not None and num_held >= self._max_held
        return not is_over and text.endswith(REPLACEMENT)
