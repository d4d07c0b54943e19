"""Names errors of the chat route by what the client sent to another API.

Each API has a table: what a part of a chat request is called there. Where messages came from is
noted in the messages themselves while they are made, and taken out before they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from truthgpt_serve.errors import TruthGPTError

_AT = "\0at"
Chat = dict[str, Any]
ErrorT = TypeVar("ErrorT", bound=TruthGPTError)
_QUOTED = re.compile(r"`([a-z_]+(?:[.\[][^`]*)?)`")
_PART = re.compile(r"\[(\d+)\]|\.?([^.\[\]]+)")
_VALUES = ("'image_url'",)
"""Values that the translation gives, as errors show them."""
_DEEPEST = 3
"""Messages, their contents or calls, and those: what may be noted of a chat."""


class Origin(NamedTuple):
    """Where a part of a chat came from.

    Attributes:
        kind: What it is in the API's table.
        place: What the client wrote there.
    """

    kind: str
    place: str


def noted(part: Chat, kind: str, place: str) -> Chat:
    """Notes in a message, or a part of one, where it came from; returns it."""
    part[_AT] = Origin(kind, place)
    return part


def noted_as(other: Chat, part: Chat) -> Chat:
    """Notes in a part that it came from where another one did; returns it."""
    part[_AT] = other[_AT]
    return part


class FieldNames:
    """What the parts of one chat request are called in the API that the client uses.

    Args:
        table: What a place in a chat request is called, without indices: `tools[].function`. What
            lies below goes along. Of a noted part, its kind and the field: `result.content`, and
            the name that follows its place, such as `.output`. Of `_VALUES`, another one.
        chat: The request; what is noted in its messages is taken out of it.
    """

    def __init__(self, table: Mapping[str, str], chat: Chat) -> None:
        self._table = table
        messages = chat.get("messages")
        self._messages = _take_origins(messages) if isinstance(messages, list) else {}

    def sent(self, place: str) -> str | None:
        """Returns what the client calls a place of the chat request; None where it is the same."""
        parts = [number or name for number, name in _PART.findall(place)]
        if parts and parts[0] == "messages" and len(parts) > 1:
            return self._sent_message(parts)
        for size in range(len(parts), 0, -1):
            known = "".join("[]" if x.isdigit() else f".{x}" for x in parts[:size])[1:]
            if (name := self._table.get(known)) is not None:
                for number in filter(str.isdigit, parts[:size]):
                    name = name.replace("[]", f"[{number}]", 1)
                return name + _join(parts[size:])
        return None

    def _sent_message(self, parts: list[str]) -> str | None:
        for size in range(min(len(parts), 4), 1, -1):
            origin = self._messages.get(tuple(parts[:size]))
            if origin is not None:
                rest = parts[size:]
                return origin.place + self._field(origin.kind, rest)
        return None

    def _field(self, kind: str, rest: list[str]) -> str:
        for size in range(len(rest), 0, -1):
            known = ".".join((kind, *("[]" if x.isdigit() else x for x in rest[:size])))
            if (name := self._table.get(known)) is not None:
                return name + _join(rest[size:])
        return _join(rest)

    def reword(self, error: ErrorT) -> ErrorT:
        """Has an error of the chat route name what the client sent; returns it."""
        if error.param is not None:
            error.param = self.sent(error.param) or error.param
        error.message = _QUOTED.sub(self._quoted, error.message)
        for word in _VALUES:
            if (name := self._table.get(word)) is not None:
                error.message = error.message.replace(word, name)
        error.args = (error.message,)
        return error

    def _quoted(self, found: re.Match[str]) -> str:
        return f"`{self.sent(found[1]) or found[1]}`"


def _join(parts: list[str]) -> str:
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)


def _take_origins(messages: list[Any]) -> dict[tuple[str, ...], Origin]:
    return dict(_origins(messages, ("messages",)))


def _origins(
    values: list[Any], place: tuple[str, ...], depth: int = 1
) -> Iterator[tuple[tuple[str, ...], Origin]]:
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            continue
        here = (*place, str(index))
        if (origin := value.pop(_AT, None)) is not None:
            yield here, origin
        if depth < _DEEPEST:
            for name in ("content", "tool_calls"):
                if isinstance(inner := value.get(name), list):
                    yield from _origins(inner, (*here, name), depth + 1)
