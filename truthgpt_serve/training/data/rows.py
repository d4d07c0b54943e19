"""One row of training data and the place it was read from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
"""Lists and objects within each other, in one row."""
_MAX_COLUMNS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Row:
    """One example as it was read.

    Attributes:
        values: Its columns.
        place: Where it stands, such as `stories.jsonl:17` or `stories.parquet: row 17`.
        problem: Why it could not be read, if so.
        fills_nulls: Whether objects have each other's keys, with null: so tables keep them.
    """

    values: Mapping[str, Any]
    place: str
    problem: str = ""
    fills_nulls: bool = False


def without_nulls(value: Any) -> Any:
    """Returns a value without the keys that are null, within it too."""
    if isinstance(value, Mapping):
        return {k: without_nulls(item) for k, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


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


def columns_of(values: Mapping[str, Any]) -> str:
    """Returns the names of the columns that a row has, for a message."""
    names = list(values)
    more = len(names) - _MAX_COLUMNS_SHOWN
    shown = ", ".join(repr(name[:80]) for name in names[:_MAX_COLUMNS_SHOWN])
    return (shown or "none") + (f" and {more:,} more" if more > 0 else "")


def text_of(values: Mapping[str, Any], field: str) -> tuple[str, str]:
    """Returns the text in a column and an empty problem, or an empty text and what is wrong."""
    if field not in values:
        return "", f"has no {field!r} column (it has {columns_of(values)})"
    value = values[field]
    if not isinstance(value, str):
        return "", f"{field!r} must be text, found {describe(value)}"
    if not value.strip():
        return "", f"{field!r} is empty"
    if problem := text_problem(value):
        return "", f"{field!r} {problem}"
    return value, ""


def text_problem(text: str) -> str:
    """Returns why a text cannot be learned as it is, or nothing."""
    if "\0" in text:
        return f"has a NUL character at position {text.index(chr(0))} (is it a binary file?)"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        return f"is not valid Unicode: half a surrogate pair, {code}, at position {error.start}"
    return ""


def value_problem(value: Any) -> str:
    """Returns why a value cannot be kept, such as a bad text somewhere within it, or nothing."""
    for place, text in _texts(value, "", 0):
        if text is None:
            return f"{place or 'the row'} is nested more than {MAX_DEPTH} deep"
        if problem := text_problem(text):
            return f"{place or 'a name'} {problem}"
    return ""


def _texts(value: Any, place: str, depth: int) -> Iterator[tuple[str, str | None]]:
    """Yields each text within a value with its place; None is something nested too deeply."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping | list | tuple):
        if depth == MAX_DEPTH:
            yield place, None
            return
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            if isinstance(key, str):
                yield f"a name in {place!r}" if place else "a column's name", key
            below = f"[{key}]" if isinstance(key, int) else f".{str(key)[:40]}"
            yield from _texts(item, (place + below).lstrip("."), depth + 1)
