"""The forms in which models write calls of tools, and which of them a chat template shows.

A template is asked by rendering a conversation with a call in it: what stands around the call is
what the model was trained to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Apply = Callable[..., Any]
"""A tokenizer's `apply_chat_template`."""

CALLED, TOLD, KEY, VALUE = "QxCalledZ", "QxToldZ", "qxkey", "QxValueZ"
"""Marks in the rendered conversation: a function that is called, one that is told of, and so on."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a model writes calls.

    Attributes:
        name: In vLLM's words, where it has a parser for it.
        begin: What stands before a call.
        end: What stands behind it, or nothing.
        is_bare: Whether an answer may be a call without anything before it.
        arguments: The key of the arguments in JSON; empty where calls are no JSON.
        id_length: The length of ids that the template asks for; 0 for any.
    """

    name: str
    begin: str = ""
    end: str = ""
    is_bare: bool = False
    arguments: str = "arguments"
    id_length: int = 0

    def opening(self, name: str = "", *, is_bound: bool = False) -> str:
        """Returns how an answer begins that calls a function, up to its arguments.

        Args:
            name: The function; empty leaves it open.
            is_bound: Whether a grammar binds the rest, which is then all of the JSON.
        """
        if self.name == "pythonic":
            return f"[{name}(" if name else "["
        if not self.arguments:
            return f"{self.begin}\n<function={name}>\n" if name else f"{self.begin}\n"
        break_ = "\n" if self.end else ""
        array = "[" if self.name == "mistral" else ""
        if is_bound and not name:
            return f"{self.begin}{break_}{array}"
        head = f'{self.begin}{break_}{array}{{"name": "'
        return f'{head}{name}", "{self.arguments}": ' if name else head


HERMES = Form("hermes", "<tool_call>", "</tool_call>")
FORMS = (
    (re.compile(r"<tool_call>\s*\{"), HERMES),
    (
        re.compile(r"<tool_call>\s*<function="),
        Form("qwen3_coder", "<tool_call>", "</tool_call>", arguments=""),
    ),
    (
        re.compile(rf"<tool_call>\s*{CALLED}\s*<arg_key>"),
        Form("glm45", "<tool_call>", "</tool_call>", arguments=""),
    ),
    (
        re.compile(rf"\[TOOL_CALLS\]\s*(?:\[|{CALLED})"),
        Form("mistral", "[TOOL_CALLS]", is_bare=True, id_length=9),
    ),
    (
        re.compile(rf'\{{\s*"name"\s*:\s*"{CALLED}"\s*,\s*"parameters"'),
        Form("llama3_json", "<|python_tag|>", is_bare=True, arguments="parameters"),
    ),
    (
        re.compile(rf"\[\s*{CALLED}\(\s*{KEY}\s*=\s*[\"']{VALUE}"),
        Form("pythonic", is_bare=True, arguments=""),
    ),
)
ANY = Form("json", "<tool_call>", "</tool_call>", is_bare=True)
"""For templates with tools whose form is none of these."""

_TOOL = {
    "type": "function",
    "function": {
        "name": TOLD,
        "description": "d",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}},
    },
}
_USER = {"role": "user", "content": "x"}


def takes_tools(apply: Apply) -> bool:
    """Returns whether a template tells the model of the tools that a request brings."""
    return TOLD in _render(apply, [_USER], add_generation_prompt=True, tools=[_TOOL])


def find_form(apply: Apply) -> Form | None:
    """Returns the form of a template's calls, or None where it shows none that is known."""
    for arguments in ({KEY: VALUE}, f'{{"{KEY}": "{VALUE}"}}'):
        function = {"name": CALLED, "arguments": arguments}
        call = {"id": "abcdefghi", "type": "function", "function": function}
        for content in ("", None):
            said = {"role": "assistant", "content": content, "tool_calls": [call]}
            text = _render(apply, [_USER, said], tools=[_TOOL])
            before, found, after = text.rpartition(CALLED)
            if not found:
                continue
            near = before[-60:] + found + after[:60]
            return next((form for pattern, form in FORMS if pattern.search(near)), None)
    return None


def _render(apply: Apply, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return str(apply(messages, tokenize=False, **options))
    except Exception:  # templates raise what they like about what they do not take
        return ""
