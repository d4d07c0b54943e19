"""Reads one call from tags: a function with one tag for each parameter, whose value is plain text.

As Qwen3-Coder writes it, `<function=add><parameter=a>1</parameter></function>`, as MiniMax-M2 does,
`<invoke name="add"><parameter name="a">1</parameter></invoke>`, and as GLM-4.5 does,
`add<arg_key>a</arg_key><arg_value>1</arg_value>`. A value is JSON, unless the parameter's schema
says that it is a string.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from truthgpt_serve.server.text.tools.json_call import MAX_HEAD, Delta

_FUNCTION = re.compile(r'\s*+<(?:function=|invoke name=")([^">\s]++)"?>')
_PARAMETER = re.compile(r'<parameter(?:=| name=")([^"<>\s]++)"?>\n?(.*?)\n?</parameter>', re.DOTALL)
_NAME = re.compile(r"\s*+([\w.-]++)\s*+(?=<arg_key>|</tool_call>)")
_PAIR = re.compile(r"<arg_key>([^<]*+)</arg_key>\s*+<arg_value>\n?(.*?)\n?</arg_value>", re.DOTALL)
_END = re.compile(r"(</function>|</invoke>|</(?:seed:|minimax:)?tool_call>)")
_SPACE = re.compile(r"\s*+")


class TaggedCall:
    """One call that is being read; like `JsonCall`, and every name is taken.

    Args:
        schemas: The parameters of each function as JSON Schemas.

    A name must end within `MAX_HEAD` characters, or it is no call.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.text = ""
        self.begun = False
        self.ended = False
        self.closed = False
        self.is_none = False
        self._is_broken = False
        self._schemas = schemas
        self._name = ""
        self._read = 0
        self._pair = _PARAMETER
        self._num_pairs = 0
        self._searched = 0

    def feed(self, text: str) -> tuple[list[Delta], int]:
        """Takes the text that follows; returns what is new, and how many characters are its."""
        before = len(self.text)
        self.text += text
        deltas: list[Delta] = []
        if not self.begun:
            self._begin(deltas)
            if self.is_none:
                self.text = self.text[:MAX_HEAD]
                return deltas, MAX_HEAD - before
        while self.begun and (pair := self._match()):
            self._read = self._searched = pair.end()
            opening = ", " if self._num_pairs else "{"
            self._num_pairs += 1
            key, value = pair[1].strip(), self._value(pair[1].strip(), pair[2])
            deltas.append(Delta(arguments=f"{opening}{_encode(key)}: {_encode(value)}"))
        if self.begun and (end := _END.match(self.text, self._read)):
            self.ended, self.closed = True, end[1].endswith("tool_call>")
            deltas.append(Delta(arguments="}" if self._num_pairs else "{}"))
            self.text = self.text[: end.end()]
            return deltas, end.end() - before
        return deltas, len(text)

    def _has_end(self) -> bool:
        """Returns whether the end of a parameter has come; a long value is looked through once."""
        tag = "</parameter>" if self._pair is _PARAMETER else "</arg_value>"
        if self.text.find(tag, self._searched) >= 0:
            return True
        self._searched = max(self._read, len(self.text) - len(tag))
        return False

    def _match(self) -> re.Match[str] | None:
        """Returns the next parameter; what ends like one and is none is not looked at again."""
        if (space := _SPACE.match(self.text, self._read)) is not None:
            self._read = space.end()
        if self._is_broken or not self._has_end():
            return None
        pair = self._pair.match(self.text, self._read)
        self._is_broken = pair is None
        return pair

    def _begin(self, deltas: list[Delta]) -> None:
        head = _FUNCTION.match(self.text, 0, MAX_HEAD)
        if head is None and (head := _NAME.match(self.text, 0, MAX_HEAD)) is not None:
            self._pair = _PAIR
        if head is not None:
            self.begun, self._read, self._name = True, head.end(), head[1]
            deltas.append(Delta(name=head[1]))
        self.is_none = head is None and len(self.text) > MAX_HEAD

    def _value(self, key: str, text: str) -> Any:
        properties = self._schemas.get(self._name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind == "string":
            return text
        try:
            return msgspec.json.decode(text.strip())
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return text


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
