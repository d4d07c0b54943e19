"""Plain texts, and prompts with what follows them."""

from __future__ import annotations

from collections.abc import Sequence

from truthgpt_serve.training.data.formats.columns import (
    TOOLS,
    need,
    pick,
    text_or_chat,
    tools_of,
    with_optional,
)
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.formats.messages import convert_chat, read_chat

TEXTS = ("text", "content")


def _find_text(values: Values, given: Columns) -> Columns | None:
    names = TEXTS if len(values) != 1 else (*TEXTS, *values)
    if column := pick(values, names, given.get("text")):
        return with_optional(values, {"text": column}, tools=TOOLS)
    return None


def _convert_text(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    column = columns["text"]
    if isinstance(values.get(column), list):
        return convert_chat(values, {**columns, "messages": column}, has_template)
    return [Sample({"text": need(values, column)}, dict(columns))]


def _find_completion(values: Values, given: Columns) -> Columns | None:
    prompt = pick(values, ("prompt",), given.get("prompt"))
    completion = pick(values, ("completion",), given.get("completion"))
    if prompt and completion:
        found = {"prompt": prompt, "completion": completion}
        return with_optional(values, found, tools=TOOLS)
    return None


def convert_completion(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    """Returns the prompt and the completion of a row: texts or messages."""
    found = {}
    for part in ("prompt", "completion"):
        value = text_or_chat(need(values, columns[part]))
        found[part] = read_chat(value, columns[part]) if isinstance(value, list) else value
    return [Sample({**found, **tools_of(values, columns)}, dict(columns))]


TEXT = Format("text", "'text'", _find_text, _convert_text)
PROMPT_COMPLETION = Format(
    "prompt-completion", "'prompt' and 'completion'", _find_completion, convert_completion
)
