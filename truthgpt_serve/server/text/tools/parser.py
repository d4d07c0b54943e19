"""Reads the calls of tools in an answer's text as it comes; `forms` has how models mark them.

Nothing of an answer is lost: what is no call is text. vLLM reads the calls of its models itself, by
a parser that `deployments/vllm/parsers.py` chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.server.text.tools.bare import find_bare
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import PYTHONIC
from truthgpt_serve.server.text.tools.gemma_call import GemmaCall
from truthgpt_serve.server.text.tools.json_call import MAX_HELD_CALL, Delta, JsonCall
from truthgpt_serve.server.text.tools.pythonic import PythonCalls
from truthgpt_serve.server.text.tools.tagged_call import TaggedCall

MAX_CALLS = 128
"""Calls that are read from one answer, as a message may have; the rest is not given."""
MAX_TRIED = 1024
"""Beginnings of calls that turn out to be none; behind those all is text."""
MAX_HELD = 512
"""Characters that are held back at most while they may still begin a call."""
_PIECE = 4096
"""Characters that are read at a time."""
_FRAME = " \t\r\n,;`[]}"
"""What may stand between calls, and around them."""
_CLOSING = re.compile(r"[ \t\r\n]*+[\]}]")
Call = JsonCall | TaggedCall | PythonCalls | GemmaCall


class CallParser:
    """Splits one answer into text and calls, the same in pieces of every size.

    What may still turn out to begin a call is held back, and so is white space in front of one.

    Args:
        form: How the model writes calls.
        schemas: The parameters of each function as JSON Schemas.
        single: Whether nothing is read behind the first call.
        is_bound: Whether a grammar binds the answer: then arguments are given as they come.

    Attributes:
        num_calls: Calls that have begun.
        done: Whether nothing more is wanted.
    """

    def __init__(
        self,
        form: Form,
        schemas: Mapping[str, Mapping[str, Any]],
        *,
        single: bool = False,
        is_bound: bool = False,
    ) -> None:
        self.num_calls = 0
        self.done = False
        self._form = form
        self._schemas = schemas
        self._most = 1 if single else MAX_CALLS
        self._max_held = 0 if is_bound else MAX_HELD_CALL
        self._num_tried = 0
        self._held = ""
        self._said_text = False
        self._marked = False  # where calls stand: behind a mark, or behind a call
        self._frame = ""  # what is text unless a call follows
        self._is_behind = False  # whether that stands behind a call
        self._call: Call | None = None
        self._known: Mapping[str, Any] | None = None  # functions that calls may be of; None for any

    def expect(self, name: str) -> list[Delta]:
        """Reads what follows as the arguments of a call that the prompt has begun.

        Args:
            name: The function.
        """
        self._call, self._marked = JsonCall(name, max_held=self._max_held), True
        return []

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is certain by now."""
        deltas: list[Delta] = []
        for at in range(0, len(text), _PIECE):
            self._held += text[at : at + _PIECE]
            while self._held and not self.done and self._step(deltas):
                pass
        return deltas

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """Returns what was held back, at the end of the answer.

        Args:
            cut: Whether its limit cut the answer: then a last call has what came of its arguments.
        """
        deltas: list[Delta] = []
        held, call, self._held, self._call = self._held, self._call, "", None
        if self.done:
            return deltas
        if isinstance(call, JsonCall) and (last := call.close()):
            self.num_calls += 1
            return last
        if call is not None and cut and not call.begun and (last := call.cut()):
            return self._within_most(last)
        if call is not None:
            held = "" if call.begun else call.text + held
        elif self.num_calls and not (self._frame + held).strip(_FRAME):
            return deltas
        elif self._is_behind and any(mark.startswith(held) for mark in self._marks()):
            return deltas  # the mark behind the call was cut off
        self._say_text(held, deltas)
        return deltas

    def _within_most(self, given: list[Delta]) -> list[Delta]:
        """Returns the deltas of calls up to the most that may be read."""
        deltas = []
        for delta in given:
            if delta.name and self.num_calls >= self._most:
                break
            self.num_calls += bool(delta.name)
            deltas.append(delta)
        return deltas

    def _marks(self) -> tuple[str, ...]:
        form = self._form
        return tuple(filter(None, (form.end, form.begin, form.behind)))

    def _step(self, deltas: list[Delta]) -> bool:
        """Reads on; returns whether there may be more to read in what is held."""
        if self._call is not None:
            return self._read_call(self._call, deltas)
        if self._num_tried >= MAX_TRIED:
            held, self._held = self._held, ""
            self._say_text(held, deltas)
            return False
        if self._marked:
            return self._find_call(deltas)
        if self._form.is_bare and not self._said_text and self.num_calls == 0:
            found = find_bare(self._form, self._schemas, self._held, MAX_HELD)
            if found.is_open:
                return False
            if found.call is not None:
                self._frame, self._held = self._held[: found.at], self._held[found.at :]
                self._call, self._known = found.call, self._schemas
                return True
        return self._find_mark(deltas)

    def _find_mark(self, deltas: list[Delta]) -> bool:
        mark, held = self._form.begin, self._held
        at = held.find(mark) if mark else -1
        text = held[:at]
        if at < 0:
            sizes = range(min(len(mark) - 1, len(held)), 0, -1)
            keep = next((size for size in sizes if held.endswith(mark[:size])), 0)
            text = held[: len(held) - keep]
        # White space may stand in front of a call.
        space = min(len(text) - len(text.rstrip()), MAX_HELD)
        said = text[: len(text) - space]
        if said:
            self._say_text(said, deltas)
        self._held = held[len(said) :]
        if at < 0:
            return False
        size = space + len(mark)
        self._marked, self._is_behind = True, False
        self._frame, self._held = self._held[:size], self._held[size:]
        return True

    def _find_call(self, deltas: list[Delta]) -> bool:
        """Looks for the next call behind a mark or a call."""
        form = self._form
        first = {mark[0] for mark in self._marks()}
        held = self._held.lstrip("".join(one for one in _FRAME if one not in first))
        size = len(self._held) - len(held)
        self._frame, self._held = self._frame + self._held[:size], held
        if len(self._frame) > MAX_HELD:
            self._leave(deltas)
            return True
        for mark in self._marks():
            if held.startswith(mark):
                self._held = held[len(mark) :]
                self._take_mark(mark, deltas)
                return True
        if not held or any(mark.startswith(held) for mark in self._marks()):
            return False
        if held[0] in _FRAME:
            self._frame, self._held = self._frame + held[0], held[1:]
            return True
        if form.begun is not None and len(held) < MAX_HELD and form.begun.match(held):
            return False
        if self._begin_call(held):
            return True
        if form.named is not None and len(held) < MAX_HELD and "{" not in held:
            return False
        self._leave(deltas)
        return True

    def _begin_call(self, held: str) -> bool:
        """Begins to read a call; returns whether what is held may be one."""
        form = self._form
        if (named := self._find_name(held)) is not None:
            call_id = named.groupdict().get("id") or ""
            self._call = JsonCall(named["name"], call_id=call_id, max_held=self._max_held)
            self._frame += held[: named.end()]
            self._held = held[named.end() :]
        elif form.quote:
            self._call = GemmaCall(form.quote)
        elif form.name in PYTHONIC:
            self._call = PythonCalls(self._schemas)
            self._give_back_bracket()
        elif held[0] == "{":
            self._call = JsonCall(names=self._known, max_held=self._max_held)
        elif form.end and form.named is None and not self._is_bare_call():
            self._call = TaggedCall(self._schemas)
        return self._call is not None

    def _find_name(self, held: str) -> re.Match[str] | None:
        """Returns the name in front of arguments, if one stands there."""
        form = self._form
        named = None if form.named is None else form.named.match(held, 0, MAX_HELD)
        if named is None or not self._is_behind or form.behind:
            return named
        # Without a mark behind calls it may as well be a word.
        return named if named["name"] in self._schemas else None

    def _is_bare_call(self) -> bool:
        """Returns whether calls stand here without a mark around them."""
        return self._form.is_bare and self._is_behind

    def _give_back_bracket(self) -> None:
        """Has a list begin with its bracket."""
        at = self._frame.rfind("[")
        if at >= 0:
            self._frame, self._held = self._frame[:at], self._frame[at:] + self._held

    def _take_mark(self, mark: str, deltas: list[Delta]) -> None:
        form = self._form
        if mark == form.begin:
            self._frame = mark if self._is_behind else self._frame + mark
            self._is_behind = False
        elif self._is_behind:
            self._frame = ""
            self._marked = mark != form.end
            self._is_behind = self._marked
        else:
            self._frame += mark
            if mark == form.end:
                self._leave(deltas)

    def _leave(self, deltas: list[Delta]) -> None:
        """Goes on with text: no call follows."""
        self._num_tried += 1
        self._marked = False
        self._say_text("", deltas)

    def _read_call(self, call: Call, deltas: list[Delta]) -> bool:
        held, self._held = self._held, ""
        deltas += self._within_most(call.feed(held))
        self._held = call.unread
        if call.is_none:
            self._call, self._marked = None, False
            self._num_tried += 1
            self._said_text = True
            self._say_text(call.text, deltas)
            return True
        if call.begun:
            self._frame = ""
        if call.ended:
            self._call, self._frame = None, ""
            self._marked = self._is_behind = not call.closed
            self.done = self.num_calls >= self._most
        return call.ended

    def _say_text(self, text: str, deltas: list[Delta]) -> None:
        """Says text, and what stood in front of it that would have belonged to a call."""
        frame, self._frame = self._frame, ""
        if self._is_behind:
            frame = _CLOSING.sub("", frame, count=1) if _CLOSING.match(frame) else frame
            self._is_behind = False
        if text := frame + text:
            self._said_text = self._said_text or bool(text.strip())
            deltas.append(Delta(text=text))
