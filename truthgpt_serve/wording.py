"""One wording for each kind of fault that pydantic finds, in files as in requests, without keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KEY_PREFIX = "tgpt-"
"""How API keys begin, so that scanners for secrets find them."""
HIDDEN = "***"
_KEY = re.compile(rf"(?:{KEY_PREFIX}|\bsk-)[\w-]{{20,}}")
"""Keys of this service, and those that clients of other services send by mistake."""
MAX_SHOWN_CHARS = 40
_MAX_SHOWN_BITS = 128
Show = Callable[[Any], str]
Words = Callable[[dict[str, Any], Any, Show], str]


def hide_keys(text: str) -> str:
    """Returns a text for a log without the keys in it, which a client may have put anywhere."""
    return _KEY.sub(HIDDEN, text)


def shown(value: Any) -> str:
    """Shows a value in a message, without repeating a long one."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if getattr(value, "shape", ()):
        return "an array"
    if isinstance(value, str):
        return f"{value[:MAX_SHOWN_CHARS]!r}" + ("…" if len(value) > MAX_SHOWN_CHARS else "")
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        return "a larger number"
    return str(value)[:MAX_SHOWN_CHARS]


def all_near(value: Any, known: Iterable[str], n: int, cutoff: float = 0.6) -> list[str]:
    """Returns the known names that `value` may mean, in capitals or not, the nearest first.

    Args:
        value: What was given.
        known: The names.
        n: How many are returned at most.
        cutoff: How alike they are at least: 0 is anything, 1 is equal.
    """
    names = {name.lower(): name for name in known}
    text = str(value)[: 2 * MAX_SHOWN_CHARS].lower()
    return [names[near] for near in difflib.get_close_matches(text, names, n=n, cutoff=cutoff)]


def nearest(value: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name that `value` probably means, in capitals or not, or None."""
    return next(iter(all_near(value, known, 1, cutoff)), None)


def suggest(value: Any, known: Iterable[str], otherwise: str | None = None) -> str:
    """Returns a fix: the known name that `value` probably means, else `otherwise`, or all names."""
    names = sorted(known) if isinstance(known, Set) else list(known)
    near = nearest(value, names)
    if near is not None:
        return f"did you mean {near!r}?"
    return otherwise or (f"known: {', '.join(names)}" if names else "there are none")


def unknown_field(name: Any) -> str:
    """Words a name that is none of the fields of a section or a request."""
    return f"unknown field `{str(name)[: 2 * MAX_SHOWN_CHARS]}`"


def words_of(detail: ErrorDetails, show: Show = shown) -> str:
    """Returns what is wrong at the place of one of pydantic's errors.

    Args:
        detail: One of `ValidationError.errors()`.
        show: Shows the value that was found.
    """
    words = _WORDS.get(detail["type"])
    if words is None:
        return detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return words(detail.get("ctx", {}), detail["input"], show)


def choices_of(detail: ErrorDetails) -> list[str]:
    """Returns the words that a `literal_error` or `enum` error allows."""
    expected = str(detail["ctx"]["expected"])
    return [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]


def must_be(wanted: str) -> Words:
    """Returns the wording `must be <wanted>, not <value>`."""
    return lambda _context, value, show: f"must be {wanted}, not {show(value)}"


def _bound(wanted: str, key: str) -> Words:
    def words(context: dict[str, Any], value: Any, show: Show) -> str:
        bound = context[key]
        text = f"{bound:.12g}" if isinstance(bound, float) else str(bound)
        return f"must be {wanted} {text}, not {show(value)}"

    return words


def _choice(context: dict[str, Any], value: Any, show: Show) -> str:
    words = str(context["expected"]).replace("'", "").replace(" or ", ", ")
    return f"must be one of {words}, not {show(value)}"


def too_long(limit: int, number: int, what: str) -> str:
    """Words a text or a list of more than `limit` characters or items."""
    return f"must have at most {limit} {what if limit != 1 else what[:-1]}, not {number}"


def _unsupported(context: dict[str, Any], value: Any, show: Show) -> str:
    return f"is {show(value)}, but this model {context['reason']}"


_WORDS: dict[str, Words] = {
    "missing": lambda *_: "is required",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), must_be("a whole number")),
    **dict.fromkeys(("float_type", "float_parsing"), must_be("a number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), must_be("true or false")),
    "finite_number": must_be("a finite number"),
    "string_type": must_be("a string"),
    "string_unicode": lambda *_: "is not valid Unicode",
    "list_type": must_be("a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), must_be("an object")),
    **dict.fromkeys(("string_too_short", "too_short"), lambda *_: "must not be empty"),
    "string_too_long": lambda context, value, _: too_long(
        context["max_length"], len(value), "characters"
    ),
    "too_long": lambda context, value, _: too_long(context["max_length"], len(value), "items"),
    "greater_than_equal": _bound("at least", "ge"),
    "greater_than": _bound("more than", "gt"),
    "less_than_equal": _bound("at most", "le"),
    "less_than": _bound("less than", "lt"),
    "multiple_of": _bound("a multiple of", "multiple_of"),
    "literal_error": _choice,
    "enum": _choice,
    "wanted": lambda context, value, show: must_be(context["wanted"])(context, value, show),
    "unsupported": _unsupported,
}
"""By pydantic's type of the error; `wanted` and `unsupported` are this package's own."""
