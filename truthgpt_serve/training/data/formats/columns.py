"""Finds columns by their usual names, and reads columns of tables that hold JSON as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats.layout import Columns, Values
from truthgpt_serve.training.data.rows import columns_of

CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
QUESTIONS = ("instruction", "question", "query", "problem", "prompt", "input")
ANSWERS = ("output", "response", "answer", "completion")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
LABELS = ("label", "kto_tag", "labels")


def pick(values: Values, names: Iterable[str], given: str | None = None) -> str | None:
    """Returns the column that the configuration names, else the first that the row has."""
    if given is not None:
        return given if given in values else None
    return next((name for name in names if name in values), None)


def with_optional(values: Values, found: Columns, **optional: Iterable[str]) -> Columns:
    """Returns the columns with those optional ones that the row has and no other part takes."""
    columns = dict(found)
    for part, names in optional.items():
        if column := pick(values, [name for name in names if name not in columns.values()]):
            columns[part] = column
    return columns


def is_chat(value: Any) -> bool:
    """Returns whether a value is a list of messages in either form, perhaps as JSON text."""
    value = from_json(value)
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_message(value: Any) -> bool:
    """Returns whether a value is a chat message in either form."""
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def from_json(value: Any) -> Any:
    """Returns what a text holds that is JSON of a list or an object, else the value itself."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def text_or_chat(value: Any) -> Any:
    """Returns messages where a text is JSON of messages, else the value itself."""
    if isinstance(value, str) and is_chat(value):
        return from_json(value)
    return value


def optional_text(values: Values, columns: Columns, part: str) -> str:
    """Returns the text of a column that may be missing or null, stripped of no space.

    Raises:
        BadRow: It is no text.
    """
    value = values.get(columns[part]) if part in columns else None
    if value is not None and not isinstance(value, str):
        raise BadRow(f"{columns[part]!r} must be text")
    return value or ""


def tools_of(values: Values, columns: Columns) -> dict[str, Any]:
    """Returns the part `tools` of an example, if the row has one."""
    tools = values.get(columns["tools"]) if "tools" in columns else None
    return {} if tools is None else {"tools": tools}


def need(values: Values, column: str) -> Any:
    """Returns the value of a column.

    Raises:
        BadRow: The row has no such column.
    """
    if column not in values:
        raise BadRow(f"has no {column!r} column (it has {columns_of(values)})")
    return values[column]
