"""One row of training data and the place it was read from.

Knows no file format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it was read.

    Attributes:
        values: Its columns.
        place: Where it stands, such as `stories.jsonl:17` or `stories.parquet: row 17`.
    """

    values: Mapping[str, Any]
    place: str


def describe(value: Any) -> str:
    """Returns what kind of value a column has, in the words of JSON."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return type(value).__name__


def text_of(values: Mapping[str, Any], field: str) -> tuple[str, str]:
    """Returns the text in a column and an empty problem, or an empty text and what is wrong."""
    if field not in values:
        return "", f"has no {field!r} column (it has {', '.join(map(repr, values)) or 'none'})"
    value = values[field]
    if not isinstance(value, str):
        return "", f"{field!r} must be text, found {describe(value)}"
    if not value.strip():
        return "", f"{field!r} is empty"
    return value, ""
