"""Renders chats by a tokenizer's template, and refuses those of which it would leave something out.

A template takes what it knows and drops the rest without a word: calls of functions, descriptions
of them, roles that its model was not trained with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from truthgpt_serve.training.text.messages import BadRow, ChatMessage

MAX_FORMS = 10_000
"""Shapes of chats of which it is remembered that the template shows all of them."""
_PRINTED_PARTS = ("'type': 'text'", '"type": "text"')
"""What a template shows of contents in parts that prints them as Python or JSON does."""
Change = Callable[[list[ChatMessage]], list[ChatMessage]]
_MARK = "zq{}qz"
"""Stands for a text while it is looked for; letters that no template changes."""


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._changes: dict[Any, Change] = {}

    def prepare(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None, field: str
    ) -> list[ChatMessage]:
        """Returns the messages as the template takes them, without what is not for it.

        Contents in parts are joined by line ends where the template knows none, as the serving
        engine does, and arguments of calls are JSON text where it takes no object.

        Raises:
            BadRow: The template would leave a part of them out, or refuses them.
        """
        bare = [{k: v for k, v in one.items() if k != "weight"} for one in messages]
        form = (bool(tools), *(_form(message) for message in bare))
        if form not in self._changes:
            change = self._choose(bare, tools, field)
            if len(self._changes) >= MAX_FORMS:
                self._changes.clear()
            self._changes[form] = change
        return self._changes[form](bare)

    def _choose(self, bare: list[ChatMessage], tools: list[Any] | None, field: str) -> Change:
        """Returns the first change of messages that makes the template show all of them."""
        problems = []
        for change in (_unchanged, _joined, _with_text_arguments):
            try:
                missing = self._missing(change(bare), tools, field)
            except BadRow as error:
                problems.append(error)
                continue
            if not missing:
                return change
            problems.append(
                BadRow(
                    f"the model's chat template leaves out {missing}, which would be lost "
                    "(remove it from the row, or give the tokenizer a template that renders it)"
                )
            )
        raise problems[0]

    def ids(
        self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any
    ) -> list[int]:
        """Returns the tokens of prepared messages.

        Raises:
            BadRow: The template refuses them.
        """
        found: list[int] = self._apply(messages, tools, tokenize=True, return_dict=False, **more)
        return found

    def text(self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any) -> str:
        """Returns the text of prepared messages.

        Raises:
            BadRow: The template refuses them.
        """
        return str(self._apply(messages, tools, tokenize=False, **more))

    def _apply(self, messages: Sequence[ChatMessage], tools: list[Any] | None, **more: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(list(messages), tools=tools, **more)
        except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRow(f"the chat template refuses it: {error}") from error

    def _missing(self, messages: list[ChatMessage], tools: list[Any] | None, field: str) -> str:
        marks = _Marks()
        try:
            text = self.text(marks.messages(messages), marks.tools(tools))
        except BadRow:
            self.text(messages, tools)  # refused as it is, rather than for the marks
            return ""
        found = marks.missing(text)
        if found is None:
            return ""
        return found if found.startswith("the column") else f"{field!r}{found}"


class _Marks:
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


def _form(message: ChatMessage) -> Any:
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


def spans(
    messages: Sequence[ChatMessage],
    wanted: Callable[[int], bool],
    ids: Callable[..., list[int]],
    whole: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yields first token and end of each wanted message of an assistant.

    Args:
        messages: The whole chat, prepared.
        wanted: Whether the message of an index is asked for.
        ids: Tokens of the first messages; takes `add_generation_prompt`.
        whole: Tokens of all messages.

    Raises:
        BadRow: The template shows first messages otherwise once others follow.
    """
    for index in range(len(messages)):
        if not wanted(index):
            continue
        before = ids(messages[:index], add_generation_prompt=True) if index else []
        after = ids(messages[: index + 1])
        if list(whole[: len(before)]) != before or list(whole[: len(after)]) != after:
            raise BadRow(
                f"the chat template shows the messages up to [{index}] otherwise once others "
                "follow, so that no part of them can be left unlearned (remove weight: 0)"
            )
        yield len(before), len(after)
