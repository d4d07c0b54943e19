"""Gives chat templates the contents of messages in the form that they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from truthgpt_serve.server.text.messages import ChatMessage

_MARK = "QxContentZ"


class TextTemplate:
    """A chat template that takes messages whose contents are texts.

    Templates of models that see, such as SmolVLM's, read lists of parts alone: of a text they print
    nothing, or fail.

    Args:
        apply: The tokenizer's `apply_chat_template`.
    """

    def __init__(self, apply: Callable[..., Any]) -> None:
        self._apply = apply

    def __call__(self, messages: Sequence[ChatMessage], **options: Any) -> Any:
        """Returns what `apply_chat_template` does."""
        shaped = [_in_parts(one) for one in messages] if self._reads_parts else messages
        return self._apply(shaped, **options)

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template prints a content in parts, and none that is a text."""
        said = {"role": "user", "content": _MARK}
        return not self._prints(said) and self._prints(_in_parts(said))

    def _prints(self, message: ChatMessage) -> bool:
        try:
            return _MARK in self._apply([message], tokenize=False, add_generation_prompt=True)
        except Exception:  # templates raise what they like about what they do not take
            return False


def _in_parts(message: ChatMessage) -> ChatMessage:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}
