"""Puts the environment's variables into text values: `${NAME}` and `${NAME:-default}`.

A value remembers how it was written, so that faults never show what the environment holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import yaml

_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{"
)
_LITERAL = "$${"
FORM = "write ${NAME} or ${NAME:-default}, or $${ where you mean the characters ${"


class Expanded(str):
    """A text with variables in it.

    Attributes:
        written: The text as it was written.
        is_whole: Whether it was one variable and nothing else.
        values: What the environment put in, with the reference to each.
    """

    written: str
    is_whole: bool
    values: dict[str, str]


class VariableError(ValueError):
    """A reference that cannot be read, or a variable that is not set.

    Args:
        message: What is wrong.
        fix: What to write instead.
    """

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


def expand(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Returns a text with its variables; the same where it has none.

    As in a shell, a default takes the place of a variable that is not set or empty.

    Raises:
        VariableError: A variable is not set, or what follows `${` is no reference.
    """
    if "${" not in text:
        return text
    values: dict[str, str] = {}

    def value(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        if found[0] == _LITERAL:
            return "${"
        if name is None:
            raise VariableError(f"{_shown(text)} has a ${{ that begins no variable", FORM)
        if default is not None and not environment.get(name):
            return default
        if name not in environment:
            fix = f"set it where the service starts, or write ${{{name}:-default}}"
            raise VariableError(f"the environment variable {name} is not set", fix)
        values.setdefault(environment[name], f"${{{name}}}")
        return environment[name]

    expanded = Expanded(_REFERENCE.sub(value, text))
    expanded.written = text
    expanded.values = {value: shown for value, shown in values.items() if value}
    whole = _REFERENCE.fullmatch(text)
    expanded.is_whole = whole is not None and whole["name"] is not None
    return expanded


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def read_scalar(text: str) -> Any:
    """Returns the number, or true or false, that an unquoted text is in YAML; else the text."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text
    return value if isinstance(value, bool | int | float) else text


def without_marks(value: Any) -> Any:
    """Returns a nested value with plain texts for those that remember how they were written."""
    if isinstance(value, Expanded):
        return str(value)
    if isinstance(value, dict):
        return {key: without_marks(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_marks(item) for item in value]
    return value
