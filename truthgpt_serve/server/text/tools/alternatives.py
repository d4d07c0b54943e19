"""Binds an answer that may be a call of a tool, or else must follow a JSON schema.

The form is xgrammar's: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

from __future__ import annotations

from typing import Any

import msgspec

from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.request import ToolUse

JSON_KINDS = ("json", "json_object")
_ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}


def with_calls(grammar: Grammar, use: ToolUse, form: Form) -> Grammar:
    """Returns a grammar for calls in the model's form beside what a request wants else.

    Args:
        grammar: Of one of `JSON_KINDS`.
        use: The request's tools.
        form: How the model writes calls, where a grammar can bind them.
    """
    schema = msgspec.json.decode(grammar.text) if grammar.kind == "json" else _ANY_OBJECT
    tags = _tags(use, form)
    calls: dict[str, Any] = {"type": "or", "elements": tags}
    if form.end and not (use.single or form.head or form.is_list):
        calls = {"type": "tags_with_separator", "tags": tags, "separator": "\n"}
        calls["at_least_one"] = True
    answer = _json(schema)
    return _grammar({"type": "or", "elements": [answer, calls]}, grammar.param)


def calls_alone(use: ToolUse, form: Form, begun: str = "") -> Grammar:
    """Returns a grammar for one call in the model's form.

    Args:
        use: The request's tools.
        form: How the model writes calls, where a grammar can bind them.
        begun: What of it the prompt has already.
    """
    return _grammar({"type": "or", "elements": _tags(use, form, begun)}, "tools")


def _grammar(content: dict[str, Any], param: str) -> Grammar:
    tag = {"type": "structural_tag", "format": content}
    return Grammar("structural_tag", msgspec.json.encode(tag).decode(), param)


def _json(schema: Any) -> dict[str, Any]:
    # Small models would go on with white space for ever.
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}


def _tags(use: ToolUse, form: Form, begun: str = "") -> list[dict[str, Any]]:
    # A mark that is a special token cannot be a grammar's text.
    begun = begun or (form.begin if form.is_bare else "")
    return [
        {
            "type": "tag",
            "begin": form.opening(name).removeprefix(begun),
            "content": {**_json(parameters), "style": form.style or "json"},
            "end": form.closing,
        }
        for name, parameters in use.schemas.items()
        if not use.name or name == use.name
    ]
