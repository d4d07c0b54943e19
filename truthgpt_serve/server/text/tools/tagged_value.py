"""Turns the text of one parameter into a value, as the parameter's schema has it."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

_KINDS: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
    str: ("string",),
}
_BRANCHES = ("anyOf", "oneOf")
_DEEPEST = 8
MAX_READ = 256
"""Schemas that are read for one value: references may lead back to where they stand."""
MAX_TEXTS = 4096
"""Named texts that are read for one value."""
_SPACE = " \t\r\n"
MAX_LITERAL = 1 << 14
"""Characters of a value that is read as Python's."""


@dataclass(slots=True)
class _Wanted:
    """What a schema says of a value.

    Attributes:
        kinds: The types that it names; none where that is not certain.
        texts: Texts that it names.
        lengths: Least and most characters of texts of bounded length.
        is_shaped: Whether it has a pattern or a format for texts.
        num_read: How many schemas were read for it.
    """

    kinds: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    lengths: list[tuple[float, float]] = field(default_factory=list)
    is_shaped: bool = False
    num_read: int = 0

    def fits(self, text: str) -> bool:
        """Returns whether a text has a length that is wanted."""
        return not self.lengths or any(low <= len(text) <= high for low, high in self.lengths)


def read_value(text: str, schema: Mapping[str, Any], key: str, *, is_text: bool = False) -> Any:
    """Returns the value of a parameter: JSON, or a text where that is none or a text is wanted.

    Args:
        text: What stands between its tags.
        schema: The function's parameters.
        key: The parameter.
        is_text: Whether the model says that it is a text.
    """
    if is_text:
        return text
    properties = schema.get("properties")
    wanted = _Wanted()
    _read(properties.get(key) if isinstance(properties, Mapping) else None, schema, wanted)
    bare = text.strip(_SPACE)
    if bare in wanted.texts:
        return bare
    if wanted.kinds == {"string"}:
        return _as_text(text, wanted)
    try:
        value = msgspec.json.decode(bare)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        found = _as_python(bare, wanted) if "string" not in wanted.kinds else None
        return _as_text(text, wanted) if found is None else found
    is_known = not wanted.kinds or not wanted.kinds.isdisjoint(_KINDS[type(value)])
    return _as_text(text, wanted) if "string" in wanted.kinds and not is_known else value


def _as_python(text: str, wanted: _Wanted) -> Any:
    """Returns a value as Python writes it, as some templates do, or None where it is not wanted."""
    if len(text) > MAX_LITERAL:
        return None
    try:
        value = msgspec.json.decode(msgspec.json.encode(ast.literal_eval(text)))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError, msgspec.MsgspecError):
        return None
    return value if not wanted.kinds.isdisjoint(_KINDS[type(value)]) else None


def _as_text(text: str, wanted: _Wanted) -> str:
    """Returns a text without the white space that the tags have around it, as far as that shows."""
    if wanted.is_shaped:
        return text.strip(_SPACE)
    head = text[1:] if text[:1] in _SPACE else text
    tails = [one[:-1] for one in (text, head) if one[-1:] and one[-1] in _SPACE]
    return next(filter(wanted.fits, (text, head, *tails)), text)


def _read(schema: Any, root: Mapping[str, Any], wanted: _Wanted, depth: int = 0) -> bool:
    """Adds what a schema says; returns whether its types are certain."""
    wanted.num_read += 1
    if not isinstance(schema, Mapping) or depth > _DEEPEST or wanted.num_read > MAX_READ:
        return False
    if isinstance(reference := schema.get("$ref"), str):
        return _read(_referred(reference, root), root, wanted, depth + 1)
    named = schema.get("enum")
    values = named if isinstance(named, list) else [schema.get("const")]
    room = MAX_TEXTS - len(wanted.texts)
    wanted.texts.update(value for value in values[:room] if isinstance(value, str))
    bounds = schema.get("minLength"), schema.get("maxLength")
    if any(isinstance(bound, int) for bound in bounds):
        low, high = (bound if isinstance(bound, int) else None for bound in bounds)
        wanted.lengths.append((low or 0, math.inf if high is None else high))
    wanted.is_shaped = wanted.is_shaped or "pattern" in schema or "format" in schema
    kinds = schema.get("type")
    if isinstance(kinds, str | list):
        kinds = [kinds] if isinstance(kinds, str) else kinds
        wanted.kinds.update(kind for kind in kinds if isinstance(kind, str))
        return True
    for name in _BRANCHES:
        if isinstance(branches := schema.get(name), list):
            inner = [_read(branch, root, wanted, depth + 1) for branch in branches[: MAX_READ + 1]]
            if all(inner):
                return True
    wanted.kinds.clear()
    return False


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    """Returns the part of a schema that a reference such as `#/$defs/X` names, or None."""
    value: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
