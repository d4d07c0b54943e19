"""Reads the calls of tools in an answer's text as it comes; `forms` has how models mark them.

vLLM reads those of its models itself, by a parser that `deployments/vllm/parsers.py` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from truthgpt_serve.server.text.tools.forms import Form
from truthgpt_serve.server.text.tools.json_call import Delta, JsonCall
from truthgpt_serve.server.text.tools.tagged_call import TaggedCall

MAX_CALLS = 128
"""Calls that are read from one answer, as a message may have; the rest is not given."""
_SEPARATORS, _BRACKETS = " \t\r\n,;`", "[]}"
"""What may stand between calls, and around them."""
_BARE_MARKS = ("functools", "<|tool_call|>")
"""What some models write before a list of calls, as Phi-4-mini does."""
MAX_HELD = 512
"""Characters that are held back at most while they may still begin a call."""
_NAMED = re.compile(r"\s*+(?P<name>[\w.-]++)\s*+(?=\{)")
"""The name in front of the arguments, where nothing else tells a call from text."""


class CallParser:
    """Splits one answer into text and calls.

    What may still turn out to begin a call is held back, and so is white space in front of one.

    Args:
        form: How the model writes calls.
        schemas: The parameters of each function as JSON Schemas.
        single: Whether nothing is read behind the first call.

    Attributes:
        num_calls: Calls that have begun.
        done: Whether nothing more is wanted.
    """

    def __init__(
        self, form: Form, schemas: Mapping[str, Mapping[str, Any]], *, single: bool = False
    ) -> None:
        self.num_calls = 0
        self.done = False
        self._form = form
        self._schemas = schemas
        self._most = 1 if single else MAX_CALLS
        self._held = ""
        self._said_text = False
        self._marked = False  # behind a mark, where calls stand
        self._mark = ""  # that mark, until a call was read behind it
        self._prefix = ""  # what stood in front of the call, should it be none
        self._call: JsonCall | TaggedCall | None = None

    def expect(self, name: str) -> list[Delta]:
        """Reads what follows as the arguments of a call that the prompt has begun.

        Args:
            name: The function.
        """
        self.num_calls += 1
        self._call, self._marked = JsonCall(name, begun=True), True
        return [Delta(name=name)]

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is certain by now."""
        self._held += text
        deltas: list[Delta] = []
        going = True
        while going and self._held and not self.done:
            going = self._step(deltas)
        return deltas

    def finish(self) -> list[Delta]:
        """Returns what was held back, at the end of the answer."""
        held, call, self._held = self._held, self._call, ""
        if self.done or (call is not None and call.begun):
            return []
        if call is not None:
            held = self._prefix + call.text + held
        elif self._marked:
            held = "" if self.num_calls else self._mark + held
        elif self.num_calls and not held.strip():
            held = ""
        return list(self._say(held))

    def _bare(self) -> bool:
        return self._form.is_bare and not self._said_text and self.num_calls == 0

    def _step(self, deltas: list[Delta]) -> bool:
        """Reads on; returns whether there may be more to read in what is held."""
        if self._call is not None:
            return self._read_call(self._call, deltas)
        if self._marked:
            return self._find_call(deltas)
        if self._bare() and (going := self._find_bare()) is not None:
            return going
        return self._find_mark(deltas)

    def _find_mark(self, deltas: list[Delta]) -> bool:
        mark, held = self._form.begin, self._held
        at = held.find(mark)
        if at >= 0:
            if held[:at].strip():
                deltas += self._say(held[:at].rstrip())
            self._held, self._marked, self._mark = held[at + len(mark) :], True, mark
            return True
        sizes = range(min(len(mark) - 1, len(held)), 0, -1)
        keep = next((size for size in sizes if held.endswith(mark[:size])), 0)
        text = held[: len(held) - keep]
        if len(rest := text.rstrip()) + MAX_HELD > len(text):
            text = rest  # white space may stand in front of a call
        self._held = held[len(text) :]
        deltas += self._say(text)
        return False

    def _find_bare(self) -> bool | None:
        """Looks for a call without a mark at the beginning; None where there is certainly none."""
        text, is_short = self._held.lstrip(" \t\r\n["), len(self._held) < MAX_HELD
        for mark in _BARE_MARKS:
            if is_short and mark.startswith(text) and text:
                return False
            text = text.removeprefix(mark).lstrip(" \t\r\n[")
        if not text:
            return False if is_short else None
        named = (self._form.named or _NAMED).match(text)
        if text[0] == "{":
            self._call = JsonCall(names=self._schemas)
        elif named is not None and named["name"] in self._schemas:
            self._call = JsonCall(named["name"])
            text = text[named.end() :]
        else:
            starts = (name for name in self._schemas if name.startswith(text.rstrip()))
            return False if is_short and next(starts, None) is not None else None
        self._prefix = self._held[: len(self._held) - len(text)]
        self._held = text
        return True

    def _find_call(self, deltas: list[Delta]) -> bool:
        """Looks for the next call behind a mark."""
        form, held = self._form, self._held.lstrip(_SEPARATORS)
        for mark in filter(None, (form.end, form.begin, form.behind)):
            if held.startswith(mark):
                self._held, self._marked = held[len(mark) :], mark != form.end
                self._mark = form.begin if mark == form.begin else self._mark
                return True
            if held and mark.startswith(held):
                return False
        if not held:
            self._held = self._held[:MAX_HELD]
            return False
        if held[0] in _BRACKETS:
            self._held = _behind_brackets(held)
            return True
        self._prefix = self._mark
        named = None if form.named is None else form.named.match(held)
        if named is not None and named.end() <= MAX_HELD:
            self._call = JsonCall(named["name"], call_id=named.groupdict().get("id") or "")
            held = held[named.end() :]
        elif held[0] == "{":
            self._call = JsonCall()
        elif form.named is not None and len(held) < MAX_HELD and "{" not in held:
            self._held = held
            return False
        elif form.end and form.named is None and (self._mark or not form.is_bare):
            self._call = TaggedCall(self._schemas)
        else:
            self._marked = False
            deltas += self._say(self._mark if form.end else "")
        self._held = held
        return True

    def _read_call(self, call: JsonCall | TaggedCall, deltas: list[Delta]) -> bool:
        found, used = call.feed(self._held)
        self._held = self._held[used:]
        for delta in found:
            self.num_calls += bool(delta.name)
            deltas.append(delta)
        if call.is_none:
            self._call, self._marked = None, False
            deltas += self._say(self._prefix + call.text)
            return True
        if call.ended:
            self._call, self._mark = None, ""
            self._marked = not call.closed
            self.done = self.num_calls >= self._most
        return call.ended

    def _say(self, text: str) -> Iterator[Delta]:
        if text:
            self._said_text = self._said_text or bool(text.strip())
            yield Delta(text=text)


def _behind_brackets(held: str) -> str:
    """Returns what follows the first of some brackets, from the last of them on if there are more.

    All in one go: to cut them off one by one takes time by the square of their number.
    """
    size = len(held) - len(held.lstrip(_SEPARATORS + _BRACKETS))
    last = max(held.rfind(bracket, 0, size) for bracket in _BRACKETS)
    return held[max(1, len(held[:last].rstrip(_SEPARATORS))) :]
