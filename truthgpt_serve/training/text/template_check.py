"""Marks texts of a chat, so that what a template leaves out of it is found.

A template takes what it knows and drops the rest without a word: calls of functions, descriptions
of them, roles that its model was not trained with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from truthgpt_serve.training.text.messages import ChatMessage

_PRINTED_PARTS = ("'type': 'text'", '"type": "text"')
"""What a template shows of contents in parts that prints them as Python or JSON does."""
Change = Callable[[list[ChatMessage]], list[ChatMessage]]
_MARK = "zq{}qz"
"""Stands for a text while it is looked for; letters that no template changes."""


class Marks:
    """Puts a mark in place of each text that must be shown, and looks for them afterwards."""

    def __init__(self) -> None:
        self._places: list[str] = []
        self._parts_at: str | None = None

    def _mark(self, place: str) -> str:
        self._places.append(place)
        return _MARK.format(len(self._places))

    def missing(self, text: str) -> str | None:
        """Returns the first place whose mark is not in the text, or is printed within its list."""
        if any(printed in text for printed in _PRINTED_PARTS):
            return self._parts_at
        for number, place in enumerate(self._places, 1):
            if _MARK.format(number) not in text:
                return place
        return None

    def messages(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Returns the messages with marks for contents, functions' names and arguments."""
        return [self._message(message, f"[{n}]") for n, message in enumerate(messages)]

    def _message(self, message: ChatMessage, at: str) -> ChatMessage:
        found = dict(message)
        content = message["content"]
        about = f"{at}.content (role {message['role']!r})"
        if isinstance(content, list):
            self._parts_at = about
            found["content"] = [{**part, "text": self._mark(about)} for part in content]
        elif content.strip():
            found["content"] = self._mark(about)
        if "tool_calls" in message:
            found["tool_calls"] = [
                self._call(call, f"{at}.tool_calls[{n}]")
                for n, call in enumerate(message["tool_calls"])
            ]
        return found

    def _call(self, call: ChatMessage, at: str) -> ChatMessage:
        function = call.get("function", call)
        marked = {**function, "name": self._mark(at), "arguments": {"x": self._mark(at)}}
        if isinstance(function["arguments"], str):
            marked["arguments"] = json.dumps(marked["arguments"])
        return {**call, "function": marked} if "function" in call else marked

    def tools(self, tools: list[Any] | None) -> list[Any] | None:
        """Returns the descriptions of functions with marks for their names."""
        if tools is None:
            return None
        place = "the column 'tools'"
        return [
            {**tool, "function": {**tool["function"], "name": self._mark(place)}}
            if "function" in tool
            else {**tool, "name": self._mark(place)}
            for tool in tools
        ]


def form_of(message: ChatMessage) -> Any:
    """Returns what of a message decides whether a template shows all of it."""
    content = message["content"]
    parts: Any = bool(content.strip()) if isinstance(content, str) else len(content)
    calls = tuple("function" in call for call in message.get("tool_calls", ()))
    return message["role"], isinstance(content, list), parts, calls, frozenset(message)


def _unchanged(messages: list[ChatMessage]) -> list[ChatMessage]:
    return messages


def _joined(messages: list[ChatMessage]) -> list[ChatMessage]:
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def _with_text_arguments(messages: list[ChatMessage]) -> list[ChatMessage]:
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in _joined(messages)
    ]


def _with_text(call: ChatMessage) -> ChatMessage:
    function = call.get("function", call)
    text = json.dumps(function["arguments"], ensure_ascii=False)
    changed = {**function, "arguments": text}
    return {**call, "function": changed} if "function" in call else changed


CHANGES: tuple[Change, ...] = (_unchanged, _joined, _with_text_arguments)
"""Ways to write the same messages, the first being as they are."""
