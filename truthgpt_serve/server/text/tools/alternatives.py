"""Binds an answer that may be a call of a tool, or else must follow a JSON schema.

The form is xgrammar's: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

from typing import Any

import msgspec

from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.server.text.tools.forms import Form
from truthgpt_serve.server.text.tools.request import ToolUse

JSON_KINDS = ("json", "json_object")
_ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}


def with_calls(grammar: Grammar, use: ToolUse, form: Form) -> Grammar:
    """Returns a grammar for calls in the model's form beside what a request wants else.

    Args:
        grammar: Of one of `JSON_KINDS`.
        use: The request's tools.
        form: How the model writes calls, with JSON.
    """
    schema = msgspec.json.decode(grammar.text) if grammar.kind == "json" else _ANY_OBJECT
    end = "}]" if form.name == "mistral" else "}"
    tags = [
        {
            "type": "tag",
            # A mark that is a special token cannot be a grammar's text.
            "begin": form.opening(name).removeprefix(form.begin if form.is_bare else ""),
            "content": {"type": "json_schema", "json_schema": parameters},
            "end": f"{end}\n{form.end}" if form.end else end,
        }
        for name, parameters in use.schemas.items()
    ]
    calls: dict[str, Any] = {"type": "or", "elements": tags}
    if form.end and not use.single:
        calls = {"type": "tags_with_separator", "tags": tags, "separator": "\n"}
        calls["at_least_one"] = True
    answer = {"type": "json_schema", "json_schema": schema}
    tag = {"type": "structural_tag", "format": {"type": "or", "elements": [answer, calls]}}
    return Grammar("structural_tag", msgspec.json.encode(tag).decode(), grammar.param)
