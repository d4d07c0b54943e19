"""Reads the parts of bodies of other APIs, with errors that name the place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.wording import shown

T = TypeVar("T")


def given_at(body: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> T | None:
    """Returns what one of the readers below makes of a field, or None for none or null."""
    value = body.get(name)
    return None if value is None else read(value, name)


def object_at(value: Any, place: str) -> Mapping[str, Any]:
    """Returns an object. Raises RequestError for another value."""
    if not isinstance(value, dict):
        raise _not(place, "an object", value)
    return value


def list_at(value: Any, place: str) -> list[Any]:
    """Returns a list. Raises RequestError for another value."""
    if not isinstance(value, list):
        raise _not(place, "a list", value)
    return value


def text_at(value: Any, place: str) -> str:
    """Returns a text. Raises RequestError for another value."""
    if value is None:
        raise bad_field(place, "is required")
    if not isinstance(value, str):
        raise _not(place, "a string", value)
    return value


def choice_at(value: Any, place: str, choices: tuple[str, ...]) -> str:
    """Returns one of the words. Raises RequestError for another value."""
    if value not in choices:
        raise _not(place, f"one of {', '.join(choices)}", value)
    return str(value)


def unsupported_at(place: str, value: Any, reason: str) -> UnsupportedError:
    """Returns the error of a field that only other servers honor."""
    return UnsupportedError(f"`{place}` is {shown(value)}, but {reason}", param=place)


def picked(body: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of these names that the body has."""
    return {name: body[name] for name in names if body.get(name) is not None}


def _not(place: str, wanted: str, value: Any) -> RequestError:
    return bad_field(place, f"must be {wanted}, not {shown(value)}")
