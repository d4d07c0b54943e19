"""Reads an answer that is a list of calls as Python writes them: `[add(a=1, b="x"), sub()]`.

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
_HEAD = re.compile(r"\s*+(?:<\|tool_call_start\|>)?+\s*+\[\s*+([A-Za-z_][\w.\-]*+)\s*+\(")
_MARK = "<|tool_call_start|>"
_MAY_BE_HEAD = re.compile(
    r"\s*+(?:<\|tool_call_start\|>)?+\s*+(?:\[\s*+(?:[A-Za-z_][\w.\-]*+\s*+)?)?"
)
MAX_HEAD = 512
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


class PythonicParser:
    """Reads one answer, like `CallParser`; calls come whole, at the end of the list.

    Args:
        names: The functions that there are: a list that begins with another one is text.
        single: Whether nothing is read behind the first call.

    Attributes:
        num_calls: Calls that were read.
        done: Whether nothing more is wanted.
    """

    def __init__(self, names: Collection[str], *, single: bool = False) -> None:
        self.num_calls = 0
        self.done = False
        self._names = names
        self._single = single
        self._held = ""
        self._is_text = False
        self._is_list = False
        self._end = _ListEnd()

    def expect(self, name: str) -> list[Delta]:
        """Reads what follows as the arguments of a call that the prompt has begun."""
        return self.feed(f"[{name}(")

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is certain by now."""
        if self.done or not text:
            return []
        if self._is_text:
            return [Delta(text=text)]
        self._held += text
        if not self._is_list:
            head = _HEAD.match(self._held)
            if head is None:
                return [] if self._may_be_head() else self._say()
            if head[1] not in self._names:
                return self._say()
            self._is_list = True
            text = self._held
        end = self._end.find_in(text)
        if end is not None:
            return self._read(len(self._held) - len(text) + end)
        return self._say() if len(self._held) > MAX_LIST else []

    def finish(self) -> list[Delta]:
        """Returns what was held back, at the end of the answer."""
        return self._say() if self._held and not self.done else []

    def _may_be_head(self) -> bool:
        if len(self._held) >= MAX_HEAD:
            return False
        is_begun = _MAY_BE_HEAD.fullmatch(self._held) is not None
        return is_begun or _MARK.startswith(self._held.lstrip())

    def _say(self) -> list[Delta]:
        held, self._held, self._is_text = self._held, "", True
        return [Delta(text=held)]

    def _read(self, end: int) -> list[Delta]:
        """Reads the list that ends there; what stands behind it is not part of the answer."""
        try:
            calls = _read_calls(self._held[:end].strip().removeprefix(_MARK))
        except _UNREADABLE:
            return self._say()
        if any(name not in self._names for name, _ in calls):
            return self._say()
        self.done = True
        deltas: list[Delta] = []
        for name, arguments in calls[:1] if self._single else calls:
            self.num_calls += 1
            deltas += [Delta(name=name), Delta(arguments=arguments)]
        return deltas


class _ListEnd:
    """Finds the end of a list in its pieces, outside of strings."""

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


def _read_calls(text: str) -> list[tuple[str, str]]:
    """Returns names and arguments, as JSON, of a list; raises one of `_UNREADABLE`."""
    tree = ast.parse(text.strip(), mode="eval").body
    if not isinstance(tree, ast.List):
        raise TypeError("no list")
    return [_read_call(node) for node in tree.elts]


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
