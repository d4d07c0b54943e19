"""Reads one call from JSON as it is written: `{"name": ..., "arguments": {...}}`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

ARGUMENTS = ("arguments", "parameters")
_HEAD = re.compile(
    r'\s*\{(?:\s*"(?:type|id)"\s*:\s*"[^"\\]*"\s*,)*\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call up to its arguments, in the usual order; others are read when they are whole."""
MAX_HEAD = 1024
"""Characters in which that must stand."""
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
_KEYS = frozenset(("name", "type", "id", "function", *ARGUMENTS))
"""Keys with which a call may begin."""


class Delta(NamedTuple):
    """What is new in an answer: text, or a call that begins, or more of the last call's arguments.

    Attributes:
        text: Text of the answer.
        name: The function of a call that begins.
        arguments: More of the arguments, as JSON.
        thought: What the model thinks before it answers.
        call_id: The id that the model gave a call that begins, if it did.
    """

    text: str = ""
    name: str = ""
    arguments: str = ""
    thought: str = ""
    call_id: str = ""


class Balance:
    """Finds the end of a JSON object in pieces of text that begin with it."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find_end(self, text: str) -> int:
        """Returns how many characters of the next piece belong to the object, or -1 for all."""
        for at, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return -1


class JsonCall:
    """One call that is being read.

    Args:
        name: The function, where it stood before the JSON: then all of that is its arguments.
        names: The functions that there are; another one makes it no call. None takes any name.
        begun: Whether its name was said already.
        call_id: The id that stood before the JSON, if one did.

    Attributes:
        text: All that was read.
        begun: Whether a delta has said that it begins.
        ended: Whether the object has ended.
        is_none: Whether it turned out to be no call.
        closed: Whether the mark behind it was read too.
    """

    def __init__(
        self,
        name: str = "",
        names: Collection[str] | None = None,
        *,
        begun: bool = False,
        call_id: str = "",
    ) -> None:
        self.text = ""
        self.begun = begun
        self.ended = False
        self.is_none = False
        self.closed = False
        self._name = name
        self._call_id = call_id
        self._names = names
        self._object, self._arguments = Balance(), Balance()
        self._sent = 0
        self._sent_all = False

    def feed(self, text: str) -> tuple[list[Delta], int]:
        """Takes the text that follows; returns what is new, and how many characters are its."""
        deltas: list[Delta] = []
        before = len(self.text)
        self.text += text
        if not self.begun and before <= MAX_HEAD:
            none_at = self._begin(deltas)
            if self.is_none:
                self.text = self.text[:none_at]
                return deltas, none_at - before
        end = self._object.find_end(text)
        self.ended = end >= 0
        used = end if self.ended else len(text)
        self.text = self.text[: before + used]
        if self.begun and not self._sent_all:
            new = self.text[self._sent :]
            end = self._arguments.find_end(new)
            self._sent_all = end >= 0
            new = new[:end] if self._sent_all else new
            self._sent += len(new)
            if new:
                deltas.append(Delta(arguments=new))
        if self.ended and not self.begun and not self.is_none:
            self._take_whole(deltas)
        return deltas, used

    def _begin(self, deltas: list[Delta]) -> int:
        """Looks for the name; returns how far it read, which is certain in pieces of every size."""
        name = self._name
        if not name:
            head = _HEAD.match(self.text, 0, MAX_HEAD)
            if head is None:
                known = self._names is not None
                first = _FIRST_KEY.match(self.text, 0, MAX_HEAD) if known else None
                self.is_none = first is not None and first[1] not in _KEYS
                return first.end() if first is not None else 0
            name, self._sent = _decode(head[1]), head.end()
        self._say(name, deltas)
        return self._sent

    def _say(self, name: Any, deltas: list[Delta]) -> None:
        is_name = isinstance(name, str) and name != ""
        if not is_name or (self._names is not None and name not in self._names):
            self.is_none = True
            return
        self.begun = True
        deltas.append(Delta(name=name, call_id=self._call_id))

    def _take_whole(self, deltas: list[Delta]) -> None:
        value = _decode(self.text)
        inner = value.get("function") if isinstance(value, dict) else None
        value = inner if isinstance(inner, dict) else value
        if not isinstance(value, dict):
            self.is_none = True
            return
        self._say(value.get("name"), deltas)
        given: Any = next((value[key] for key in ARGUMENTS if key in value), {})
        self._sent_all = True
        if self.begun:
            text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
            deltas.append(Delta(arguments=text))


def _decode(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
