"""Log probabilities of tokens in the forms of OpenAI's two text routes.

Shapes: `logprobs` of `chat.completion` and of `text_completion` in OpenAI's API reference. What has
no probability at all is -9999, as there and in vLLM: JSON has no infinity.
"""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.text.tokenizer import Tokenizer

LOWEST = -9999.0
Entry = dict[str, Any]


class LogprobFormat:
    """Shapes the entries of one answer, whole or piece by piece.

    Args:
        tokenizer: Turns token ids into texts, for a class that gives ids.
        chat: Chat completions, else completions.
        num_top: How many of the likeliest tokens are wanted beside each token.
        label: The class's name, for messages.
    """

    def __init__(self, tokenizer: Tokenizer, *, chat: bool, num_top: int, label: str) -> None:
        self._tokenizer = tokenizer
        self._chat = chat
        self._num_top = num_top
        self._label = label
        self._offset = 0

    def shape(self, entries: list[Entry | None]) -> dict[str, Any]:
        """Returns the field `logprobs` of a choice.

        Args:
            entries: As a class gives them: `logprob`, `token_id` or `token`, and `top`, a list of
                the same, the likeliest first. A prompt's first token has none but its `token_id`.

        Raises:
            ServerError: An entry has another form.
        """
        try:
            if self._chat:
                content = [self._chat_token(entry) for entry in entries if entry is not None]
                return {"content": content, "refusal": None}
            return self._completion(entries)
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerError(
                f"{self._label} gave a log probability that is no dict of `logprob`, `token_id` or "
                f"`token`, and `top`: {type(error).__name__}: {error}"
            ) from error

    def _text(self, entry: Entry) -> str:
        token = entry.get("token")
        return token if isinstance(token, str) else self._tokenizer.token_text(entry["token_id"])

    def _chat_token(self, entry: Entry) -> dict[str, Any]:
        top = [self._one(item) for item in entry.get("top", ())[: self._num_top]]
        return {**self._one(entry), "top_logprobs": top}

    def _one(self, entry: Entry) -> dict[str, Any]:
        text = self._text(entry)
        value = max(float(entry["logprob"]), LOWEST)
        return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

    def _completion(self, entries: list[Entry | None]) -> dict[str, Any]:
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for entry in entries:
            if entry is None:
                continue
            text = self._text(entry)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            if entry.get("logprob") is None:
                values.append(None)
                tops.append(None)
                continue
            value = max(float(entry["logprob"]), LOWEST)
            values.append(value)
            top = {text: value}
            for item in entry.get("top", ())[: self._num_top]:
                # Parts of characters look alike: the likeliest of them counts.
                top.setdefault(self._text(item), max(float(item["logprob"]), LOWEST))
            tops.append(top)
        return {
            "text_offset": offsets,
            "token_logprobs": values,
            "tokens": tokens,
            "top_logprobs": tops,
        }
