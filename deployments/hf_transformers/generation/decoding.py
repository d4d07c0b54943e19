"""Turns tokens into text, without special tokens but for those that mark calls and thoughts.

Some models write special tokens around calls, such as Mistral's `[TOOL_CALLS]`, and around what
they think: without them nothing tells these from text.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

from truthgpt_serve.server.text.tokenizer import Tokenizer

MAX_REMEMBERED = 1 << 18
"""Most texts of single tokens that are kept."""


class TextDecoder:
    """Decodes the tokens of one model.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._kept = _kept(tokenizer)
        self._texts: dict[int, str] = {}
        self._decode = partial(
            tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def __call__(self, tokens: list[int]) -> str:
        """Returns the text of tokens; that of single ones is remembered."""
        if len(tokens) != 1:
            return self._text(tokens)
        text = self._texts.get(tokens[0])
        if text is None:
            text = self._text(tokens)
            if len(self._texts) < MAX_REMEMBERED:
                self._texts[tokens[0]] = text
        return text

    def _text(self, tokens: list[int]) -> str:
        if not self._kept or self._kept.isdisjoint(tokens):
            return str(self._decode(tokens))
        parts = []
        for is_kept, some in groupby(tokens, self._kept.__contains__):
            part = list(some)
            decode = self._tokenizer.convert_ids_to_tokens
            parts.append("".join(decode(part)) if is_kept else str(self._decode(part)))
        return "".join(parts)


def _kept(tokenizer: Any) -> frozenset[int]:
    """Returns the special tokens among the marks of the template's calls and thoughts."""
    if getattr(tokenizer, "chat_template", None) is None:
        return frozenset()
    known = Tokenizer(tokenizer)
    marks = known.tooling.form.marks if known.tooling.takes_tools else frozenset()
    if (thinking := known.reasoning) is not None:
        marks |= {thinking.begin, thinking.end}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(
        number for number, token in added.items() if token.special and token.content in marks
    )
