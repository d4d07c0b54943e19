"""How a model writes calls of tools."""

from __future__ import annotations

import re
from dataclasses import dataclass

CALLED, KEY, VALUE = "QxCalledZ", "qxkey", "QxValueZ"
"""A function that is called in a rendered conversation, a parameter's name and its value."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a model writes calls.

    Attributes:
        name: In vLLM's words, where it has a parser for it.
        begin: What stands before a call, or before all of them.
        end: What stands behind it or them, or nothing.
        is_bare: Whether an answer may be a call without anything before it.
        arguments: The key of the arguments in JSON; empty where those are no JSON.
        id_length: The length of ids that the template asks for; 0 for any.
        head: What stands between `begin` and the arguments, with `{name}`; where it is empty,
            a call is a JSON object with its name and its arguments.
        tail: What stands between the arguments and `end`.
        is_list: Whether those objects stand in a list.
        named: Finds the name before the arguments: `name`, and `id` where the model writes one.
        begun: Finds what may still become that, where a bracket stands in front of the name.
        inner: Other marks of calls, which may be special tokens.
        behind: The mark behind each call, where `end` is that behind all of them.
        needs_tokens: Whether vLLM's parser wants `begin` and `end` to be one token each.
        quote: The mark around texts among arguments, where those are as Gemma writes them.
        style: How xgrammar writes arguments that are no JSON; empty where it cannot.
    """

    name: str
    begin: str = ""
    end: str = ""
    is_bare: bool = False
    arguments: str = "arguments"
    id_length: int = 0
    head: str = ""
    tail: str = "}"
    is_list: bool = False
    named: re.Pattern[str] | None = None
    begun: re.Pattern[str] | None = None
    inner: tuple[str, ...] = ()
    behind: str = ""
    needs_tokens: bool = False
    style: str = ""
    quote: str = ""

    def opening(self, name: str = "", *, is_bound: bool = False) -> str:
        """Returns how an answer begins that calls a function, up to its arguments.

        Args:
            name: The function; empty leaves it open.
            is_bound: Whether a grammar binds the rest, which is then all of the JSON.
        """
        if self.head:
            before, _, behind = self.head.partition("{name}")
            if name:
                return f"{self.begin}{before}{name}{behind}"
            return self.begin + (before if self.arguments else before.partition("<")[0])
        array = "[" if self.is_list else ""
        break_ = "\n" if self.end and not array else ""
        if is_bound and not name:
            return f"{self.begin}{break_}{array}"
        head = f'{self.begin}{break_}{array}{{"name": "'
        return f'{head}{name}", "{self.arguments}": ' if name else head

    @property
    def is_bindable(self) -> bool:
        """Whether a grammar can bind calls to the schemas of their functions."""
        return bool(self.arguments or self.style)

    @property
    def closing(self) -> str:
        """What stands behind the arguments of a last call."""
        tail = self.tail + ("]" if self.is_list else "")
        return tail + ("" if self.head or self.is_list or not self.end else "\n") + self.end

    @property
    def marks(self) -> frozenset[str]:
        """What tells calls from text: those among them that are special tokens are to be kept."""
        return frozenset((self.begin, self.end, *self.inner)) - {""}
