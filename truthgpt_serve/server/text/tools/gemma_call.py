"""Reads one call as Gemma writes it: `call:add{a:1,s:<|"|>text<|"|>}`.

Keys stand without quotes, and texts between two marks, which are tokens of their own:
https://ai.google.dev/gemma/docs/functiongemma/formatting-and-best-practices.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from truthgpt_serve.server.text.tools.json_call import MAX_CALL, MAX_HEAD, Delta, without_begun

_HEAD = re.compile(r"\s*+(?:call)?:([\w.-]++)(?=\{)")
_HEAD_BEGUN = re.compile(r"\s*+(?:c|ca|cal|(?:call)?(?::[\w.-]*+)?)?\Z")
_WORDS = frozenset(("true", "false", "null"))
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][+-]?\d++)?")


class GemmaCall:
    """One call that is being read, given when it is whole; like `JsonCall`, of any name.

    Args:
        quote: The mark around texts.
    """

    closed = False

    def __init__(self, quote: str) -> None:
        self.text = self.unread = ""
        self.begun = False
        self.ended = False
        self.is_none = False
        self._name = ""
        self._first = 0
        self._at = 0
        self._depth = 0
        self._quote = quote
        mark = re.escape(quote)
        self._bracket = re.compile(rf"[{{}}]|{mark}")
        word = rf"[^{{}}\[\],:]+?(?={mark}|[{{}}\[\],:]|\Z)"
        self._part = re.compile(rf"{mark}(?P<text>.*?){mark}|[{{}}\[\],:]|{word}", re.DOTALL)

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is new."""
        self.text += text
        if not self._name:
            head = _HEAD.match(self.text, 0, MAX_HEAD)
            if head is None:
                if _HEAD_BEGUN.match(self.text) is None or len(self.text) > MAX_HEAD:
                    self._leave(0, is_none=True)
                return []
            self._name, self._first = head[1], head.end()
            self._at = self._first
        end = self._find_end()
        if max(end, len(self.text) if end < 0 else 0) > MAX_CALL:
            self._leave(MAX_CALL, is_none=True)
        elif end >= 0:
            return self._take(end)
        return []

    def cut(self) -> list[Delta]:
        """Returns the call at the end of a cut answer, with what came of its arguments."""
        if not self._name or self.is_none or self.ended:
            return []
        text, begun = self.text[self._first :], ""
        if self.text.startswith(self._quote, self._at):
            text = self.text[self._first : self._at]
            begun = self.text[self._at + len(self._quote) :]
            begun = _encode(without_begun(begun, self._quote))[:-1]
        arguments = self._as_json(without_begun(text, self._quote)) + begun
        return [Delta(name=self._name), Delta(arguments=arguments)]

    def _leave(self, at: int, *, is_none: bool) -> None:
        self.is_none, self.ended = is_none, not is_none
        self.text, self.unread = self.text[:at], self.text[at:]

    def _find_end(self) -> int:
        """Returns the position behind the arguments, or -1."""
        while (found := self._bracket.search(self.text, self._at)) is not None:
            self._at = found.end()
            if found[0] == self._quote:
                end = self.text.find(self._quote, self._at)
                if end < 0:
                    self._at = found.start()
                    return -1
                self._at = end + len(self._quote)
                continue
            self._depth += 1 if found[0] == "{" else -1
            if self._depth == 0:
                return self._at
        self._at = max(self._at, len(self.text) - len(self._quote) + 1)
        return -1

    def _take(self, end: int) -> list[Delta]:
        arguments = self._as_json(self.text[self._first : end])
        self._leave(end, is_none=not _is_object(arguments))
        self.begun = self.ended
        return [] if self.is_none else [Delta(name=self._name), Delta(arguments=arguments)]

    def _as_json(self, text: str) -> str:
        """Returns arguments as JSON, or what is none where they are not what they should be."""
        parts = []
        for found in self._part.finditer(text):
            if found["text"] is not None:
                parts.append(_encode(found["text"]))
                continue
            word = found[0].strip()
            is_key = text.startswith(":", found.end())
            is_json = word in _WORDS or _NUMBER.fullmatch(word) or word in tuple("{}[],:")
            parts.append(word if not word or (is_json and not is_key) else _encode(word))
        return "".join(parts)


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()
