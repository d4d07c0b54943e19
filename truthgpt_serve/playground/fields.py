"""What the pages make of their fields: the body of a request, without what was left empty."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.playground.client import ServiceFault

MAX_TEXT = 200_000
"""Letters in one field."""
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?|-?\.[0-9]{1,20}")


def number(value: Any, name: str) -> float | int | None:
    """Returns a number, whole where it is written so, or None for an empty field.

    Raises:
        ServiceFault: It is no number.
    """
    given = value.strip() if isinstance(value, str) else ""
    if not given:
        return None
    if not _NUMBER.fullmatch(given):
        raise ServiceFault(f"{name} must be a number such as 0.7, not {given[:40]!r}")
    return float(given) if "." in given else int(given)


def whole(value: Any, name: str) -> int | None:
    """Returns a whole number, or None for an empty field.

    Raises:
        ServiceFault: It is no whole number.
    """
    found = number(value, name)
    if isinstance(found, float):
        raise ServiceFault(f"{name} must be a whole number, not {found}")
    return found


def text(value: Any, name: str, *, required: bool = False) -> str | None:
    """Returns a text, or None for an empty field.

    Raises:
        ServiceFault: It is required and empty, or too long.
    """
    given = value if isinstance(value, str) else ""
    if len(given) > MAX_TEXT:
        raise ServiceFault(
            f"{name} has {len(given)} letters; at most {MAX_TEXT} are sent from here"
        )
    if given.strip():
        return given
    if required:
        raise ServiceFault(f"{name} is empty")
    return None


def key(value: Any) -> str:
    """Returns the API key, or an empty text."""
    return value.strip() if isinstance(value, str) else ""


def model(value: Any) -> str:
    """Returns the chosen model's name.

    Raises:
        ServiceFault: None is chosen.
    """
    if not isinstance(value, str) or not value:
        raise ServiceFault(
            "No model is chosen: the service has none for this page, or a key is asked"
        )
    return value


def without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
