"""What `/v1/infer` requests used, by their inputs and outputs: as the route of the task counts it.

What runs behind an engine that counts for itself is not counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from truthgpt_serve.server.text_limits import CHARACTERS_A_TOKEN
from truthgpt_serve.usage.counted import Usage, current_usage

CountTokens = Callable[[str], int | None]
"""Returns the tokens of a text, or None if nobody can count them."""


class InferCount(Protocol):
    """Counts one request. Made in its task; the outputs come where the model's code runs."""

    async def begin(self, inputs: Mapping[str, Any]) -> None:
        """Notes the inputs, as the client sent them. Raises RateLimitError."""

    def add(self, outputs: Any) -> None:
        """Notes what `infer` returned, or one item of `stream`."""

    def end(self) -> None:
        """Notes that there was all of it."""


class TextCount:
    """The tokens of a text or a vector: those that the outputs tell, else counted.

    Args:
        count_tokens: Counts where the outputs do not say it; None counts roughly.
    """

    def __init__(self, count_tokens: CountTokens | None = None) -> None:
        self._used = current_usage()
        self._count_tokens = count_tokens
        self._prompt = ""
        self._texts: list[str] = []
        self._given: dict[str, int] = {}

    async def begin(self, inputs: Mapping[str, Any]) -> None:
        """Notes the inputs."""
        text = inputs.get("text")
        self._prompt = text if isinstance(text, str) else ""
        if self._used is not None:
            self._used.at_end.append(self._add_unfinished)

    def add(self, outputs: Any) -> None:
        """Notes what `infer` returned, or one item of `stream`."""
        if self._used is None or not isinstance(outputs, Mapping):
            return
        text, usage = outputs.get("text"), outputs.get("usage")
        if isinstance(text, str) and text:
            self._texts.append(text)
        told = usage if isinstance(usage, Mapping) else {"prompt_tokens": outputs.get("num_tokens")}
        for name in ("prompt_tokens", "completion_tokens"):
            if type(number := told.get(name)) is int and number >= 0:
                self._given[name] = number

    def end(self) -> None:
        """Adds the tokens of all of it."""
        if self._used is None:
            return
        used, self._used = self._used, None
        given = self._given
        if "prompt_tokens" not in given:
            given["prompt_tokens"] = self._count(self._prompt)
        if "completion_tokens" not in given:  # a class may repeat the prompt
            answer = "".join(self._texts).removeprefix(self._prompt)
            given["completion_tokens"] = self._count(answer, len(self._texts))
        used.prompt_tokens += given["prompt_tokens"]
        used.completion_tokens += given["completion_tokens"]

    def _count(self, text: str, num_pieces: int = 0) -> int:
        number = None if self._count_tokens is None else self._count_tokens(text)
        return max(len(text) // CHARACTERS_A_TOKEN, num_pieces) if number is None else number

    def _add_unfinished(self, used: Usage) -> None:
        """Adds what was made, of a request that failed or whose client left: nearly."""
        if self._used is None or (used.failed and not self._texts):
            return
        self._used = None
        used.prompt_tokens += len(self._prompt) // CHARACTERS_A_TOKEN
        used.completion_tokens += len(self._texts)
