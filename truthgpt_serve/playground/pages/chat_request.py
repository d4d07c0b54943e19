"""A chat's request, and its answer as far as it has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.playground import fields
from truthgpt_serve.playground.client import ServiceFault

MAX_ANSWER = 500_000
"""Letters of one answer that are shown; more end the request."""
MAX_CONVERSATION = 500_000
"""Letters of one conversation, which is kept here and sent with each message."""
MAX_MESSAGES = 400
"""Messages of one conversation: each update of the page goes through all of them."""

Message = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """An answer as far as it has come."""

    started_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    num_pieces: int = 0
    num_tokens: int | None = None
    length: int = 0
    parts: list[str] = field(default_factory=list)
    reason: str = ""

    def add(self, event: Message) -> None:
        """Takes over an event of the stream."""
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.num_tokens = usage["completion_tokens"]
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        self.reason = str(choice.get("finish_reason") or self.reason)
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            if self.first_s is None:
                self.first_s = time.monotonic() - self.started_s
            self.parts.append(text)
            self.num_pieces += 1
            self.length += len(text)

    @property
    def text(self) -> str:
        """All of the text."""
        self.parts = ["".join(self.parts)]
        return self.parts[0]

    def describe(self) -> str:
        """Returns how many tokens came, and how fast."""
        seconds = time.monotonic() - self.started_s
        if self.first_s is None:
            return f"No text came, after {seconds:.1f} s."
        number, word = (
            (self.num_pieces, "pieces") if self.num_tokens is None else (self.num_tokens, "tokens")
        )
        rate = number / max(seconds, 1e-3)
        cut = " It ended at the limit of tokens." if self.reason == "length" else ""
        return (
            f"{number} {word} in {seconds:.1f} s ({rate:.0f}/s), "
            f"the first after {self.first_s * 1000:.0f} ms.{cut}"
        )


def build_body(model: Any, history: list[Message], options: list[Any]) -> dict[str, Any]:
    """Returns the request's body.

    Args:
        model: The model's name.
        history: The conversation, with the user's new message at the end.
        options: System prompt, temperature, most tokens, top p and seed, each possibly empty.

    Raises:
        ServiceFault: A field has no usable value.
    """
    if sum(len(one["content"]) for one in history) > MAX_CONVERSATION:
        raise ServiceFault(
            f"The conversation has more than {MAX_CONVERSATION} letters: start a new one"
        )
    if len(history) > MAX_MESSAGES:
        raise ServiceFault(
            f"The conversation has more than {MAX_MESSAGES} messages: start a new one"
        )
    system, temperature, max_tokens, top_p, seed = options
    prompt = fields.text(system, "The system prompt")
    messages = [{"role": "system", "content": prompt}] if prompt else []
    return fields.without_empty(
        {
            "model": fields.model(model),
            "messages": [*messages, *history],
            "temperature": fields.number(temperature, "Temperature"),
            "top_p": fields.number(top_p, "Top p"),
            "max_tokens": fields.whole(max_tokens, "Max tokens"),
            "seed": fields.whole(seed, "Seed"),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
