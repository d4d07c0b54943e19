"""Reads one call from tags: a function with one tag for each parameter, whose value is plain text.

As Qwen3-Coder writes it, `<function=add><parameter=a>1</parameter></function>`, as MiniMax-M2 does,
`<invoke name="add"><parameter name="a">1</parameter></invoke>`, as DeepSeek V3.2 does, with its
mark in each tag and `string="true"` beside texts, and as GLM-4.5 does,
`add<arg_key>a</arg_key><arg_value>1</arg_value>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from truthgpt_serve.server.text.tools.json_call import MAX_CALL, MAX_HEAD, Delta, without_begun
from truthgpt_serve.server.text.tools.tagged_value import read_value

DSML = "\N{FULLWIDTH VERTICAL LINE}DSML\N{FULLWIDTH VERTICAL LINE}"
_FUNCTION = re.compile(rf'\s*+<(?:function=|(?:{DSML})?invoke name=")([^">\s]++)"?>')
_FUNCTION_BEGUN = re.compile(r"\s*+(?:<[^>]*+)?\Z")
_NAME = re.compile(r"\s*+([\w.-]++)\s*+(?:(?=<arg_key>)|(?=</tool_call>))")
_NAME_BEGUN = re.compile(r"\s*+(?:[\w.-]++\s*+(?:<[\w/]*+)?)?\Z")
_SPACE = re.compile(r"\s*+")
_SECTION_ENDS = (
    *("</tool_call>", "</seed:tool_call>", "</minimax:tool_call>"),
    *(f"</{DSML}{name}>" for name in ("function_calls", "tool_calls")),
)
"""Marks behind calls, which models write where they forget the end of the last one."""


class _Kind(NamedTuple):
    """How parameters are written.

    Attributes:
        opening: What stands before a value; its first group is the parameter's name, and the one
            called `text`, if there is one, says whether it is a text.
        begins: How that begins.
        ends: How that ends: what has this and does not match is no parameter.
        closing: What stands behind a value.
        call_ends: What stands behind the last one.
    """

    opening: re.Pattern[str]
    begins: str
    ends: str
    closing: str
    call_ends: tuple[str, ...]


def _tags(mark: str = "") -> _Kind:
    pattern = rf'<{mark}parameter(?:=| name=")([^"<>\s]++)"?(?: string="(?P<text>true|false)")?>'
    ends = (*(f"</{mark}{name}>" for name in ("function", "invoke")), *_SECTION_ENDS)
    return _Kind(re.compile(pattern), f"<{mark}parameter", ">", f"</{mark}parameter>", ends)


_TAGS, _DSML_TAGS = _tags(), _tags(DSML)
_PAIRS = _Kind(
    re.compile(r"<arg_key>([^<]*+)</arg_key>\s*+<arg_value>"),
    "<arg_key>",
    "<arg_value>",
    "</arg_value>",
    _SECTION_ENDS,
)


class TaggedCall:
    """One call that is being read, given when it is whole; like `JsonCall`, of any name.

    Args:
        schemas: The parameters of each function as JSON Schemas.
    """

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        self.text = self.unread = ""
        self.begun = False
        self.ended = False
        self.closed = False
        self.is_none = False
        self._schemas = schemas
        self._name = ""
        self._kind = _TAGS
        self._pairs: dict[str, Any] = {}
        self._open: re.Match[str] | None = None
        self._read = 0
        self._searched = 0

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is new."""
        self.text += text
        if not self._name:
            self._begin()
        while self._name and not self.is_none and not self.ended and self._step():
            pass
        if self._read > MAX_CALL or (len(self.text) > MAX_CALL and not self.ended):
            self.ended, self.is_none, self._read = False, True, MAX_CALL
        if self.ended or self.is_none:
            self.text, self.unread = self.text[: self._read], self.text[self._read :]
        if not self.ended:
            return []
        self.begun = True
        pairs = [f"{_encode(key)}: {_encode(value)}" for key, value in self._pairs.items()]
        return [Delta(name=self._name), Delta(arguments="{" + ", ".join(pairs) + "}")]

    def cut(self) -> list[Delta]:
        """Returns the call at the end of a cut answer, with what came of its arguments."""
        if not self._name or self.is_none or self.ended:
            return []
        pairs = [f"{_encode(key)}: {_encode(value)}" for key, value in self._pairs.items()]
        if self._open is not None:
            text = without_begun(self.text[self._open.end() :], self._kind.closing)
            key, schema = self._open[1].strip(), self._schemas.get(self._name, {})
            value = read_value(text.removeprefix("\n"), schema, key)
            begun = _encode(value)[:-1] if isinstance(value, str) else text.strip()
            pairs.append(f"{_encode(key)}: {begun}")
        return [Delta(name=self._name), Delta(arguments="{" + ", ".join(pairs))]

    def _begin(self) -> None:
        text = self.text
        head = _FUNCTION.match(text, 0, MAX_HEAD)
        if head is None and (head := _NAME.match(text, 0, MAX_HEAD)) is not None:
            self._kind = _PAIRS
            # Without parameters it may as well be a word.
            is_call = text.startswith("<arg_key>", head.end()) or head[1] in self._schemas
            head = head if is_call else None
        elif head is not None and DSML in head[0]:
            self._kind = _DSML_TAGS
        if head is not None:
            self._name, self._read = head[1], head.end()
            return
        begun = _FUNCTION_BEGUN.match(text) or _NAME_BEGUN.match(text)
        self.is_none = begun is None or len(text) > MAX_HEAD

    def _step(self) -> bool:
        """Reads a tag or a value; returns whether there may be more to read."""
        kind, text = self._kind, self.text
        if self._open is not None:
            return self._read_value(self._open)
        if (space := _SPACE.match(text, self._read)) is not None:
            self._read = space.end()
        for end in kind.call_ends:
            if text.startswith(end, self._read):
                self._read += len(end)
                self.ended, self.closed = True, end in _SECTION_ENDS
                return False
        self._open = kind.opening.match(text, self._read, self._read + MAX_HEAD)
        if self._open is not None:
            self._searched = self._open.end()
            return True
        rest = text[self._read : self._read + MAX_HEAD + 1]
        self.is_none = not self._may_go_on(rest)
        return False

    def _may_go_on(self, rest: str) -> bool:
        """Returns whether a tag may begin so that it is not certain yet which."""
        kind = self._kind
        if any(end.startswith(rest) for end in kind.call_ends):
            return True
        begins = rest.startswith(kind.begins) or kind.begins.startswith(rest)
        return begins and len(rest) <= MAX_HEAD and kind.ends not in rest

    def _read_value(self, opening: re.Match[str]) -> bool:
        closing = self._kind.closing
        end = self.text.find(closing, self._searched)
        if end < 0:
            self._searched = max(opening.end(), len(self.text) - len(closing))
            return False
        text = self.text[opening.end() : end]
        if text.startswith("\n"):
            text = text[1:].removesuffix("\n")
        key, is_text = opening[1].strip(), opening.groupdict().get("text")
        schema = self._schemas.get(self._name, {})
        self._pairs[key] = read_value(text, schema, key, is_text=is_text == "true")
        self._open, self._read = None, end + len(closing)
        return True


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
