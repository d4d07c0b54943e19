"""Reads calls as Python writes them: `[add(a=1, b="x"), sub()]`, or one without the list.

As Llama 3.2 and Llama 4 write them: https://www.llama.com/docs/model-cards-and-prompt-formats/.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Any

import msgspec

from truthgpt_serve.server.text.tools.json_call import Delta

MAX_LIST = 1 << 17
"""Characters of a list that are read; a longer one is text."""
MAX_HEAD = 512
MAX_CUT_TRIED, MAX_CUT = 16, 8192
"""Commas at which the arguments of a cut call are tried to end, and its length for that."""
MAX_CUT_CALLS = 128
_BETWEEN = " \t\r\n,"
_HEAD = re.compile(r"\s*+(?:\[\s*+)?([A-Za-z_][\w.\-]*+)\s*+\(")
_HEAD_BEGUN = re.compile(r"\s*+(?:\[\s*+)?(?:[A-Za-z_][\w.\-]*+\s*+)?\Z")
_UNREADABLE = (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError)


class PythonCalls:
    """A list of calls that is being read, or one call; like `JsonCall`, given when it is whole.

    Args:
        names: The functions that there are: what calls another one is none.
    """

    closed = False

    def __init__(self, names: Collection[str]) -> None:
        self.text = self.unread = ""
        self.begun = False
        self.ended = False
        self.is_none = False
        self._names = names
        self._is_known = False
        self._end = _ListEnd()

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is new."""
        self.text += text
        if not self._is_known:
            head = _HEAD.match(self.text, 0, MAX_HEAD)
            self._is_known = head is not None and head[1] in self._names
            if not self._is_known:
                is_open = head is None and _HEAD_BEGUN.match(self.text) is not None
                if not is_open or len(self.text) >= MAX_HEAD:
                    self._leave(0, is_none=True)
                return []
            text = self.text
        end = self._end.find_in(text)
        at = len(self.text) if end is None else len(self.text) - len(text) + end
        if at > MAX_LIST:
            self._leave(MAX_LIST, is_none=True)
        elif end is not None:
            return self._take(at)
        return []

    def cut(self) -> list[Delta]:
        """Returns the calls at the end of a cut answer, the last one as far as it came."""
        if not self._is_known or self.is_none or self.ended:
            return []
        text = self.text.lstrip().removeprefix("[")
        calls, rest = _split_cut(text)
        deltas = [
            delta
            for name, arguments in calls
            for delta in (Delta(name=name), Delta(arguments=arguments))
        ]
        head = _HEAD.match(rest, 0, MAX_HEAD)
        if head is not None and head[1] in self._names:
            deltas += [Delta(name=head[1]), Delta(arguments=_cut_arguments(rest))]
        return deltas if all(name in self._names for name, _ in calls) else []

    def _leave(self, at: int, *, is_none: bool) -> None:
        self.is_none, self.ended = is_none, not is_none
        self.text, self.unread = self.text[:at], self.text[at:]

    def _take(self, at: int) -> list[Delta]:
        """Reads the list that ends there."""
        try:
            calls = _read_calls(self.text[:at])
        except _UNREADABLE:
            calls = []
        self._leave(at, is_none=not calls or any(name not in self._names for name, _ in calls))
        self.begun = self.ended
        if self.is_none:
            return []
        return [
            delta
            for name, arguments in calls
            for delta in (Delta(name=name), Delta(arguments=arguments))
        ]


class _ListEnd:
    """Finds the end of a list, or of a call, in its pieces, outside of strings."""

    def __init__(self) -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False

    def find_in(self, text: str) -> int | None:
        """Returns the position behind the list's end in the next piece, or None."""
        for at, char in enumerate(text, start=1):
            if self._quote:
                ends = char == self._quote and not self._escaped
                self._escaped = char == "\\" and not self._escaped
                self._quote = "" if ends else self._quote
            elif char in "\"'":
                self._quote = char
            elif char in "[({":
                self._depth += 1
            elif char in "])}":
                self._depth -= 1
                if self._depth <= 0:
                    return at
        return None


def _split_cut(text: str) -> tuple[list[tuple[str, str]], str]:
    """Returns the whole calls of a list that was cut, and what stands behind them."""
    calls: list[tuple[str, str]] = []
    while len(calls) < MAX_CUT_CALLS and (end := _ListEnd().find_in(text)) is not None:
        try:
            calls += _read_calls(text[:end])
        except _UNREADABLE:
            break
        text = text[end:].lstrip(_BETWEEN)
    return calls, text


def _cut_arguments(call: str) -> str:
    """Returns the beginning of a call's arguments as JSON, up to the last one that is whole."""
    at = len(call) if len(call) <= MAX_CUT else 0
    for _ in range(MAX_CUT_TRIED):
        at = call.rfind(",", 0, at)
        if at < 0:
            break
        try:
            [(_, arguments)] = _read_calls(f"{call[:at]})")
        except _UNREADABLE:
            continue
        return arguments[:-1]
    return "{"


def _read_calls(text: str) -> list[tuple[str, str]]:
    """Returns names and arguments, as JSON, of a list; raises one of `_UNREADABLE`."""
    tree = ast.parse(_with_escapes(text.strip()), mode="eval").body
    return [_read_call(node) for node in (tree.elts if isinstance(tree, ast.List) else [tree])]


def _with_escapes(text: str) -> str:
    """Returns a list whose strings have no raw line breaks, which Python's have not, as escapes."""
    if "\n" not in text and "\r" not in text:
        return text
    return _STRING.sub(lambda found: _BREAK.sub(_escaped_break, found[0]), text)


def _escaped_break(found: re.Match[str]) -> str:
    return _BREAKS.get(found[0], found[0])


_STRING = re.compile(r"""(["'])(?:[^"'\\]|\\.|(?!\1)["'])*+\1""", re.DOTALL)
_BREAK = re.compile(r"\\.|[\r\n]", re.DOTALL)
_BREAKS = {"\n": "\\n", "\r": "\\r"}


def _read_call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise TypeError("no call by names")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise TypeError("no call by names")
        arguments[keyword.arg] = _value(keyword.value)
    return ast.unparse(node.func), msgspec.json.encode(arguments).decode()


def _value(node: ast.expr) -> Any:
    """Returns a literal; `true`, `false` and `null` are those of JSON."""
    if isinstance(node, ast.Name) and node.id in _JSON_WORDS:
        return _JSON_WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_value(key) for key in node.keys if key is not None]
        return dict(zip(map(str, keys), map(_value, node.values), strict=True))
    return ast.literal_eval(node)


_JSON_WORDS = {"true": True, "false": False, "null": None}
