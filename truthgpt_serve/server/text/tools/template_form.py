"""Finds the form of calls that a chat template shows.

A template is asked by rendering a conversation with a call in it: what stands around the call is
what the model was trained to write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truthgpt_serve.server.text.tools.form import CALLED, KEY, VALUE, Form
from truthgpt_serve.server.text.tools.forms import FORMS, SHOWN_BY_WORDS

Apply = Callable[..., Any]
"""A tokenizer's `apply_chat_template`."""

TOLD = "QxToldZ"
"""A function that the conversation tells of."""
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
    for call_id in ("abcdefghi", f"functions.{CALLED}:0"):  # Kimi's calls have their name there
        for arguments in ({KEY: VALUE}, f'{{"{KEY}": "{VALUE}"}}'):
            function = {"name": CALLED, "arguments": arguments}
            call = {"id": call_id, "type": "function", "function": function}
            for content in ("", None):
                said = {"role": "assistant", "content": content, "tool_calls": [call]}
                text = _render(apply, [_USER, said], tools=[_TOOL])
                before, found, after = text.rpartition(CALLED)
                if found:
                    near = before[-60:] + found + after[:60]
                    return next((form for pattern, form in FORMS if pattern.search(near)), None)
    told = _render(apply, [_USER], add_generation_prompt=True, tools=[_TOOL])
    name = next((name for words, name in SHOWN_BY_WORDS if words in told), None)
    return next((form for _, form in FORMS if form.name == name), None)


def _render(apply: Apply, messages: list[dict[str, Any]], **options: Any) -> str:
    try:
        return str(apply(messages, tokenize=False, **options))
    except Exception:  # templates raise what they like about what they do not take
        return ""
