"""Reads answers in the form of gpt-oss: messages with a channel each, which may go to a function.

`<|channel|>analysis<|message|>thoughts<|end|><|start|>assistant<|channel|>final<|message|>answer`,
and calls as `<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>`:
https://cookbook.openai.com/articles/openai-harmony.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from truthgpt_serve.server.text.tools.json_call import Delta, JsonCall

START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
CALL, RETURN, CONSTRAIN = "<|call|>", "<|return|>", "<|constrain|>"
HARMONY = "openai"
"""The form's name, which is that of vLLM's parser."""
FINAL = f"{CHANNEL}final{MESSAGE}"
"""How an answer begins that has no thoughts."""
FUNCTIONS = "functions."
_ENDS = (END, CALL, RETURN, START)
"""What may end a message: the end of the answer does too."""
_TO = re.compile(r"\bto=([\w.:-]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_HEADS = (CHANNEL, START, " to=")
"""How the head of a first message begins; what begins otherwise is text."""
MAX_HEAD = 512
"""Characters of a message's head; one that is longer is text."""


def _begins_head(text: str) -> bool:
    return any(mark.startswith(text[: len(mark)]) for mark in _HEADS)


class HarmonyReader:
    """Splits one answer into thoughts, text and a call, the same in pieces of every size.

    Args:
        names: The functions that there are.
        max_held: As for `JsonCall`.

    Attributes:
        num_calls: Calls that have begun, one at most: nothing is read behind it.
        done: Whether nothing more is wanted.
    """

    def __init__(self, names: Collection[str], *, max_held: int) -> None:
        self.num_calls = 0
        self.done = False
        self._names = names
        self._max_held = max_held
        self._held = ""
        self._in_head = self._is_first = True
        self._is_thought = False
        self._call: JsonCall | None = None

    def expect(self, name: str) -> list[Delta]:
        """Reads what follows as the arguments of a call that the prompt has begun.

        Args:
            name: The function.
        """
        self._in_head, self._call = False, JsonCall(name, max_held=self._max_held)
        return []

    def feed(self, text: str) -> list[Delta]:
        """Takes the text that follows; returns what is certain by now."""
        self._held += text
        deltas: list[Delta] = []
        while self._held and not self.done and self._step(deltas):
            pass
        return deltas

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """Returns what was held back, at the end of the answer; `cut` as for `CallParser`."""
        deltas: list[Delta] = []
        held, self._held = self._held, ""
        if self.done:
            return deltas
        if self._call is not None:
            call, self._call = self._call, None
            if cut and (last := call.cut()):
                self.num_calls += 1
                return last
            if not call.begun:
                self._say(call.text + held, deltas)
        elif not self._in_head or (self._is_first and not _begins_head(held)):
            self._say(held, deltas)
        return deltas

    def _step(self, deltas: list[Delta]) -> bool:
        """Reads on; returns whether there may be more to read in what is held."""
        if self._call is not None:
            return self._read_call(self._call, deltas)
        return self._read_head(deltas) if self._in_head else self._read_body(deltas)

    def _read_head(self, deltas: list[Delta]) -> bool:
        held = self._held
        at = held.find(MESSAGE, 0, MAX_HEAD)
        if at < 0:
            if len(held) >= MAX_HEAD:
                self._in_head = self._is_thought = False
            return len(held) >= MAX_HEAD
        head, self._held = held[:at], held[at + len(MESSAGE) :]
        self._in_head = self._is_first = False
        to, channel = _TO.search(head), _CHANNEL.search(head)
        name = to[1].removeprefix(FUNCTIONS) if to is not None else ""
        self._is_thought = channel is not None and channel[1] == "analysis"
        if name in self._names:
            self._call = JsonCall(name, max_held=self._max_held)
        return True

    def _read_body(self, deltas: list[Delta]) -> bool:
        held = self._held
        found = [(at, mark) for mark in _ENDS if (at := held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._say(held[:at], deltas)
            self._held = held[at + len(mark) :]
            self._in_head = True
            return True
        sizes = range(min(max(map(len, _ENDS)) - 1, len(held)), 0, -1)
        keep = next((n for n in sizes if any(mark.startswith(held[-n:]) for mark in _ENDS)), 0)
        self._say(held[: len(held) - keep], deltas)
        self._held = held[len(held) - keep :]
        return False

    def _read_call(self, call: JsonCall, deltas: list[Delta]) -> bool:
        held, self._held = self._held, ""
        new = call.feed(held)
        self.num_calls += sum(bool(delta.name) for delta in new)
        deltas += new
        if call.is_none:
            self._call, self._is_thought = None, False
            self._held = call.text + call.unread
            return True
        self.done = call.ended
        return False

    def _say(self, text: str, deltas: list[Delta]) -> None:
        if text:
            deltas.append(Delta(thought=text) if self._is_thought else Delta(text=text))
