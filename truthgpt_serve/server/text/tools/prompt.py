"""Tells a model of tools: by its chat template, or in words where that has no place for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import msgspec

from truthgpt_serve.grammar.kinds import PLAIN_KEYWORDS
from truthgpt_serve.server.text.messages import ChatMessage, parse_arguments
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import ANY, DEEPSEEK_V3, DEEPSEEK_V31, HERMES
from truthgpt_serve.server.text.tools.template_form import Apply, find_form, takes_tools

_MARK = "QxSystemZ"
_KNOWN_BY_HEART = (DEEPSEEK_V3, DEEPSEEK_V31)
"""Forms of models whose own templates write calls and results, but tell of no tools."""
_WORDS = """You can call these functions; each line describes one in JSON:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments in this form, one for each call:
{call}"""
_RESULTS = "\nWhat it returns then comes between <tool_response> and </tool_response>."


class ToolTemplate:
    """What one class's chat template knows of tools.

    Args:
        apply: The tokenizer's `apply_chat_template`, or None where it has no template.
    """

    def __init__(self, apply: Apply | None) -> None:
        self._apply = apply

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template itself tells the model of tools."""
        return self._apply is not None and takes_tools(self._apply)

    @cached_property
    def form(self) -> Form:
        """How the model writes calls."""
        if self._apply is None:
            return HERMES
        shown = find_form(self._apply)
        if self.takes_tools:
            return shown or ANY
        return shown if shown in _KNOWN_BY_HEART else HERMES

    @cached_property
    def _takes_system(self) -> bool:
        if self._apply is None:
            return True
        probe = [{"role": "system", "content": _MARK}, {"role": "user", "content": "x"}]
        try:
            return _MARK in self._apply(probe, tokenize=False, add_generation_prompt=True)
        except Exception:  # templates raise what they like about what they do not take
            return False

    def in_words(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
    ) -> list[ChatMessage]:
        """Returns messages that tell of the tools, their calls and results in plain text.

        Args:
            messages: The chat, as `read_messages` returns it.
            tools: The tools, as templates take them; none where only the chat has calls.
        """
        form = self.form
        lines = "\n".join(_encode(tool["function"]) for tool in tools)
        call = form.opening("the name") + '{"argument": "value"}' + form.closing
        told = _WORDS.format(tools=lines, call=call)
        if tools and form in _KNOWN_BY_HEART:
            return self._with_system(list(messages), told)
        told += _RESULTS
        plain: list[ChatMessage] = []
        told_so = (_in_words(message, form) for message in messages)
        for role, group in groupby(told_so, lambda message: message["role"]):
            run = list(group)
            if role == "user" and len(run) > 1:
                content = "\n".join(str(message["content"]) for message in run)
                run = [{**run[0], "content": content}]
            plain += run
        return self._with_system(plain, told) if tools else plain

    def _with_system(self, plain: list[ChatMessage], told: str) -> list[ChatMessage]:
        """Returns messages that say something more to the model, in front if they can."""
        if plain and plain[0]["role"] in ("system", "developer") and self._takes_system:
            first = plain[0]
            return [{**first, "content": f"{first['content']}\n\n{told}"}, *plain[1:]]
        if self._takes_system:
            return [{"role": "system", "content": told}, *plain]
        at = next((at for at, message in enumerate(plain) if message["role"] == "user"), None)
        if at is None:
            return [*plain, {"role": "user", "content": told}]
        asked = {**plain[at], "content": f"{told}\n\n{plain[at]['content']}"}
        return [*plain[:at], asked, *plain[at + 1 :]]


def with_one_type(value: Any) -> Any:
    """Returns tools whose parameters have one type each, beside `nullable` where it may be null.

    The templates of Hermes and others know no type `null`, and follow it without an end.
    """
    if isinstance(value, list):
        return [with_one_type(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    found = {
        key: item if key in PLAIN_KEYWORDS else with_one_type(item) for key, item in value.items()
    }
    kinds = found.get("type")
    kinds = [kinds] if kinds == "null" else kinds
    if isinstance(kinds, list) and "null" in kinds:
        del found["type"]
        found["nullable"] = True
        if others := [kind for kind in kinds if kind != "null"]:
            found["type"] = others[0] if len(others) == 1 else others
    return found


def _in_words(message: ChatMessage, form: Form) -> ChatMessage:
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    if "tool_calls" not in message:
        return message
    blocks = [message["content"]] if message["content"] else []
    for call in parse_arguments(message)["tool_calls"]:
        function = call["function"]
        blocks.append(_written(form, function["name"], function["arguments"]))
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(blocks)}


def _written(form: Form, name: str, arguments: Any) -> str:
    """Returns a call as the model writes it, in JSON where that cannot be."""
    if form.name == "lfm2" and isinstance(arguments, Mapping):
        pairs = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        return f"{form.opening(name)}{pairs}{form.closing}"
    if not form.arguments or form is HERMES:
        text = _encode({"name": name, "arguments": arguments})
        return f"<tool_call>\n{text}\n</tool_call>"
    text = arguments if isinstance(arguments, str) else _encode(arguments)
    return f"{form.opening(name)}{text}{form.closing}"


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
