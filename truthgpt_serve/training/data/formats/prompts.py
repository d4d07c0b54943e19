"""Prompts alone, for methods that sample the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.alpaca import find_question, names_of, question_of
from truthgpt_serve.training.data.formats.columns import (
    TOOLS,
    need,
    pick,
    text_or_chat,
    with_optional,
)
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values
from truthgpt_serve.training.data.formats.messages import find_chat, read_chat, with_system
from truthgpt_serve.training.data.rows import columns_of


def _find(values: Values, given: Columns) -> Columns | None:
    if "prompt" in given or "prompt" in values:
        if prompt := pick(values, ("prompt",), given.get("prompt")):
            return with_optional(values, {"prompt": prompt}, tools=TOOLS)
        return None
    if chat := find_chat(values, given):
        return {**chat, "prompt": chat["messages"]}
    if question := find_question(values, given):
        # What else a row has is for the reward function.
        parts = ("instruction", "input", "system", "tools")
        return {part: column for part, column in question.items() if part in parts}
    text = pick(values, ("text",), given.get("text"))
    return {"prompt": text} if text else None


def _convert(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    """Returns the prompt and, as they are, the other columns."""
    if "instruction" in columns:
        names = names_of(columns)
        prompt = question_of(values, columns, has_template)
    else:
        names = columns
        prompt = text_or_chat(need(values, columns["prompt"]))
        if isinstance(prompt, list) or "messages" in columns:
            prompt = with_system(read_chat(prompt, columns["prompt"]), values, columns)
    if isinstance(prompt, list):
        _check_end(prompt, names["prompt"])
    used = {column for part, column in columns.items() if part != "tools"}
    others = {name: value for name, value in values.items() if name not in used}
    if "prompt" in others:
        column = names["prompt"]
        raise BadRow(f"has a column 'prompt' beside {column!r} (rename one): {columns_of(values)}")
    if columns.get("tools") in others:
        others["tools"] = others.pop(columns["tools"])
    return [Sample({"prompt": prompt, **others}, dict(names))]


def _check_end(messages: Sequence[object], column: str) -> None:
    last = messages[-1]
    if isinstance(last, Mapping) and last.get("role") == "assistant":
        fix = "leave it out, or name another column by data.prompt_field"
        raise BadRow(f"{column!r} ends with an answer of the assistant, so it is no prompt ({fix})")


PROMPT_ONLY = Format("prompt-only", "'prompt'", _find, _convert, reads_all=True)
