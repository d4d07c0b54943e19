"""Reads one call from JSON as it is written: `{"name": ..., "arguments": {...}}`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, NamedTuple

import msgspec

ARGUMENTS = ("arguments", "parameters")
NAMES = ("name", "tool_name")
_HEAD = re.compile(
    r'\s*\{(?:\s*"(?:type|id|tool_call_id)"\s*:\s*"[^"\\]*"\s*,)*'
    r'\s*"(?:tool_)?name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
"""A call up to its arguments, in the usual order; others are read when they are whole."""
MAX_HEAD = 1024
"""Characters in which that must stand."""
MAX_HELD_CALL = 2048
"""Characters of a call that are held back until it is whole: one that is not JSON is text then. The
arguments of a longer call are given as they come."""
MAX_CALL = 1 << 20
"""Characters of a call that is only read when it is whole; a longer one is text."""
_OPENING = re.compile(r"[ \t\r\n]*+(?:\{[ \t\r\n]*+)?")
_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
_KEYS = frozenset(("type", "id", "tool_call_id", "function", *NAMES, *ARGUMENTS))
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
    """Follows a JSON object in pieces of text that begin with it, up to its end."""

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

    def mend(self, text: str) -> str:
        """Returns the next piece with control characters in strings as JSON writes them.

        Models often write the line breaks of a long text as they are.
        """
        if _CONTROL.search(text) is None:
            self.find_end(text)
            return text
        mended = []
        for char in text:
            mended.append(_ESCAPES.get(char, char) if self._in_string else char)
            self.find_end(char)
        return "".join(mended)


_CONTROL = re.compile(r"[\x00-\x1f]")
_ESCAPES = {chr(code): f"\\u{code:04x}" for code in range(32)}
_ESCAPES |= {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class JsonCall:
    """One call that is being read.

    Args:
        name: The function, where it stood before the JSON: then all of that is its arguments.
        names: The functions that there are; another one makes it no call. None takes any name.
        call_id: The id that stood before the JSON, if one did.
        max_held: Characters that are held back until the call is whole.

    Attributes:
        text: All that was read.
        begun: Whether a delta has said that it begins.
        ended: Whether the object has ended.
        is_none: Whether it turned out to be no call; `text` is the same in pieces of every size.
        closed: Whether the mark behind it was read too.
        unread: What was taken and is not its.
    """

    closed = False

    def __init__(
        self,
        name: str = "",
        names: Collection[str] | None = None,
        *,
        call_id: str = "",
        max_held: int = MAX_HELD_CALL,
    ) -> None:
        self.text = self.unread = ""
        self.begun = False
        self.ended = False
        self.is_none = False
        self._name = name
        self._call_id = call_id
        self._names = names
        self._max_held = max_held
        self._object, self._arguments, self._mended = Balance(), Balance(), Balance()
        self._first = 0 if name else -1
        self._sent = 0
        self._sent_all = False

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is new."""
        before = len(self.text)
        end = self._object.find_end(text)
        self.ended = end >= 0
        self.text += text
        if self.ended:
            self._leave(before + end)
        if not self.begun:
            none_at = self._find_head() if before <= MAX_HEAD else -1
            none_at = MAX_CALL if none_at < 0 and len(self.text) > MAX_CALL else none_at
            if none_at >= 0:
                self.is_none = True
                self._leave(none_at)
                return []
        return self._new()

    def _leave(self, at: int) -> None:
        self.text, self.unread = self.text[:at], self.text[at:] + self.unread

    def _new(self) -> list[Delta]:
        """Returns what may be given by now."""
        if self.begun:
            return self._more()
        if len(self.text) > self._max_held and self._first >= 0:
            return [self._say(self._name), *self._more()]
        deltas = self._take_whole() if self.ended else []
        self.is_none = self.ended and not deltas
        return deltas

    def _find_head(self) -> int:
        """Looks for the name; returns up to where it is certain that this is no call, or -1."""
        opening = _OPENING.match(self.text)
        at = opening.end() if opening is not None else 0
        if at < len(self.text) and not ("{" in self.text[:at] and self.text[at] in '"}'):
            return at
        if self._first >= 0:
            return -1
        head = _HEAD.match(self.text, 0, MAX_HEAD)
        if head is None:
            known = self._names is not None
            first = _FIRST_KEY.match(self.text, 0, MAX_HEAD) if known else None
            return first.end() if first is not None and first[1] not in _KEYS else -1
        name = _decode(head[1])
        if not self._knows(name):
            return head.end()
        self._name, self._first = name, head.end()
        return -1

    def _knows(self, name: Any) -> bool:
        is_name = isinstance(name, str) and name != ""
        return is_name and (self._names is None or name in self._names)

    def _say(self, name: str) -> Delta:
        self.begun, self._sent = True, max(0, self._first)
        return Delta(name=name, call_id=self._call_id)

    def _more(self) -> list[Delta]:
        """Returns what follows of the arguments."""
        new = "" if self._sent_all else self.text[self._sent :]
        end = self._arguments.find_end(new)
        self._sent_all = self._sent_all or end >= 0
        new = new[:end] if end >= 0 else new
        self._sent += len(new)
        return [Delta(arguments=self._mended.mend(new))] if new else []

    def close(self) -> list[Delta]:
        """Returns the call at the end of the answer, if only its last bracket is missing."""
        given = self.text[max(0, self._first) :]
        end = Balance().find_end(given)
        if self.begun or self.is_none or self._first <= 0 or end < 0 or given[end:].strip():
            return []
        self.text += "}"
        return self._take_whole()

    def cut(self) -> list[Delta]:
        """Returns the call at the end of an answer that was cut, with what came of its arguments.

        There is none where nothing came of them, or not even the name.
        """
        if self.begun or self.is_none or not self.text[max(0, self._first) :].strip():
            return []
        return [self._say(self._name), *self._more()] if self._first >= 0 else []

    def _take_whole(self) -> list[Delta]:
        """Returns the call, or nothing where it is none."""
        value = _decode(self.text)
        if value is None:
            value = _decode(Balance().mend(self.text))
        if not isinstance(value, dict):
            return []
        if self._first == 0:
            return [self._say(self._name), *self._more()]
        inner = value.get("function")
        value = inner if isinstance(inner, dict) else value
        name = next((value[key] for key in NAMES if key in value), None)
        given = next((value[key] for key in ARGUMENTS if key in value), None)
        given = {} if given is None else given
        text = given if isinstance(given, str) else msgspec.json.encode(given).decode()
        if not (self._knows(name) and isinstance(_decode(text), dict)):
            return []
        if self._first > 0 and name == self._name:
            return [self._say(self._name), *self._more()]
        return [self._say(str(name)), Delta(arguments=text)]


def without_begun(text: str, mark: str) -> str:
    """Returns a text without the beginning of a mark at its end."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((text[:-size] for size in sizes if text.endswith(mark[:size])), text)


def _decode(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
