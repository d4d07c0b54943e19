"""Makes the tokens of the family `echo` and keeps their time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

from deployments.echo.config import EchoSettings


class EchoFailure(RuntimeError):
    """The failure that `fail_after` asks for."""


class WhitespaceTokenizer:
    """One token for each word; the chat template is the last user message."""

    def encode(self, text: str) -> list[str]:
        """Returns the words."""
        return text.split()

    def apply_chat_template(self, messages: list[dict[str, str]], **_options: Any) -> str:
        """Returns the text of the last user message, else of the last message."""
        for message in reversed(messages):
            if message["role"] == "user":
                return message["content"]
        return messages[-1]["content"]


def echo_tokens(prompt: str, num_tokens: int) -> Iterator[str]:
    """Yields the prompt's words over and over, each with a space in front.

    The first has a space exactly when the prompt does not begin with one. So the text never begins
    with the exact prompt, which a server would cut off.
    """
    words = prompt.split() or ["echo"]
    first = "" if prompt[:1].isspace() else " "
    for index, word in enumerate(islice(cycle(words), num_tokens)):
        yield f" {word}" if index else first + word


class Schedule:
    """When each token of one answer is due: at a fixed time from the start, so nothing drifts."""

    def __init__(self, settings: EchoSettings) -> None:
        self._now = asyncio.get_running_loop().time
        self._interval_s = settings.interval_s
        first_s = settings.time_to_first_token_s
        self._due = self._now() + (self._interval_s if first_s is None else first_s)

    def next_wait_s(self) -> float:
        """Returns the seconds until the next token is due; negative when it is late."""
        wait_s = self._due - self._now()
        self._due += self._interval_s
        return wait_s
