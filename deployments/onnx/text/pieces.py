"""Turns the tokens of one text into pieces of text as they come."""

from __future__ import annotations

from typing import Any

UNFINISHED = "\ufffd"
"""What a tokenizer writes for the first bytes of a character."""
MAX_HELD = 16
"""Tokens after which bytes that never become a character are let through."""


class Pieces:
    """Holds tokens back until their characters are whole.

    A piece is the difference of two decodings with the same beginning, since some tokenizers write
    a token differently at the start of a text.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._done = 0

    def push(self, token: int) -> str:
        """Returns the text that a further token makes certain; often it is empty."""
        self._tokens.append(token)
        return self._take(last=False)

    def flush(self) -> str:
        """Returns the rest of the text."""
        return self._take(last=True)

    def _take(self, *, last: bool) -> str:
        before = self._decode(self._tokens[self._start : self._done])
        whole = self._decode(self._tokens[self._start :])
        held = len(self._tokens) - self._done
        if not last and (
            len(whole) <= len(before) or (whole.endswith(UNFINISHED) and held < MAX_HELD)
        ):
            return ""
        self._start, self._done = self._done, len(self._tokens)
        return whole[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        decode = self._tokenizer.decode
        return str(decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
