"""Reads pydantic's own text of the faults that it found, and says them in plain words."""

from __future__ import annotations

import re

MAX_FAULTS = 3
_HEAD = re.compile(r"\d+ validation errors? for [^\n]*\n")
_FAULT = re.compile(
    r"^(?P<place>[^\s\n][^\n]*)\n  (?P<text>.*?)(?: \[type=[^\n]*)?$(?:\n    For further [^\n]*)?",
    re.MULTILINE,
)
_MODEL = re.compile(r"[A-Z]\w*|tagged-union\[.*|function-\w+\[.*|ValidatorIterator")


def in_plain_words(message: str) -> tuple[str, str | None]:
    """Returns a message without pydantic's form, and the first field that it names.

    Args:
        message: Any error message; one that is not pydantic's stays as it is, without a field.
    """
    head = _HEAD.search(message)
    if head is None:
        return message, None
    faults = [
        (_field(found["place"]), found["text"]) for found in _FAULT.finditer(message, head.end())
    ]
    faults = list(dict.fromkeys(faults))
    if not faults:
        return message, None
    told = [f"`{field}`: {text}" if field else text for field, text in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        told.append(f"and {len(faults) - MAX_FAULTS} more")
    first = next((field for field, _ in faults if field), None)
    return message[: head.start()] + "; ".join(told), first


def _field(place: str) -> str:
    """Returns a place without the names of pydantic's classes in it."""
    return ".".join(part for part in place.split(".") if not _MODEL.fullmatch(part))
