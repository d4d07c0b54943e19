"""The family `echo` as a model class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from deployments.echo.config import EchoSettings
from deployments.echo.engine import EchoFailure, Schedule, WhitespaceTokenizer, echo_tokens
from truthgpt_serve.errors import RequestError
from truthgpt_serve.usage.counted import add_tokens

MAX_TOKENS = 1_000_000
YIELD_EVERY = 16
"""Tokens without a pause after which other requests get their turn."""


class EchoModel:
    """Answers with the words of the prompt, repeated; deterministic and without weights.

    Attributes:
        tokenizer: Counts words, so that usage is exact.
        default_max_new_tokens: Tokens of an answer when the request does not say.
        ongoing: Answers that are being made now.
    """

    def __init__(self) -> None:
        self.tokenizer = WhitespaceTokenizer()
        self.default_max_new_tokens = EchoSettings().num_tokens
        self.ongoing = 0
        self._settings = EchoSettings()

    def load(self, cfg: dict[str, Any]) -> None:
        """Reads `serving.engine`."""
        self._settings = EchoSettings.model_validate(cfg["serving"]["engine"])
        self.default_max_new_tokens = self._settings.num_tokens

    async def infer(self, inputs: dict[str, Any]) -> dict[str, str]:
        """Returns the whole text of `stream`."""
        parts: list[str] = []
        reason = "length"
        try:
            async with aclosing(self.stream(inputs)) as items:
                async for item in items:
                    parts.append(item["text"])
                    reason = item.get("finish_reason", reason)
        except asyncio.CancelledError:  # its client left
            add_tokens(0, len(parts))
            raise
        text = "".join(parts)
        stops = self._read(inputs)[1]
        ends = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
        if not ends:
            return {"text": text, "finish_reason": reason}
        end, stop = min(ends)
        return {"text": text[:end], "finish_reason": reason, "stop_reason": stop}

    async def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, str], None]:
        """Yields `{"text": token}` for `max_new_tokens` tokens, or until a stop string is whole.

        Args:
            inputs: `text`; optionally `max_new_tokens` and `stop`, a list of texts.

        Raises:
            EchoFailure: `fail_after` tokens were made.
            RequestError: An input has another type.
        """
        text, stops, num_tokens = self._read(inputs)
        longest = max(map(len, stops), default=0)
        schedule = Schedule(self._settings)
        fail_after = self._settings.fail_after
        tail = ""
        self.ongoing += 1
        try:
            for index, token in enumerate(echo_tokens(text, num_tokens)):
                if index == fail_after:
                    raise EchoFailure(f"echo fails after {index} tokens, as its settings say")
                wait_s = schedule.next_wait_s()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                elif not index % YIELD_EVERY:
                    await asyncio.sleep(0)
                yield {"text": token}
                if stops:
                    tail = tail[-longest:] + token
                    if any(stop in tail for stop in stops):
                        yield {"text": "", "finish_reason": "stop"}
                        return
            yield {"text": "", "finish_reason": "length"}
        finally:
            self.ongoing -= 1

    def _read(self, inputs: dict[str, Any]) -> tuple[str, list[str], int]:
        """Returns the text, what ends it, and its length in tokens."""
        text, stops = inputs.get("text", ""), inputs.get("stop") or []
        num_tokens = inputs.get("max_new_tokens") or self.default_max_new_tokens
        stops = [stops] if isinstance(stops, str) else stops
        if not isinstance(text, str):
            raise RequestError("`inputs.text` must be a string", param="inputs.text")
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise RequestError("`inputs.stop` must be a list of strings", param="inputs.stop")
        if type(num_tokens) is not int or not 1 <= num_tokens <= MAX_TOKENS:
            raise RequestError(
                f"`inputs.max_new_tokens` must be a whole number from 1 to {MAX_TOKENS}",
                param="inputs.max_new_tokens",
            )
        return text, stops, num_tokens
