"""Looks for a call without a mark in front of it, at the beginning of an answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import PYTHONIC
from truthgpt_serve.server.text.tools.json_call import JsonCall
from truthgpt_serve.server.text.tools.pythonic import PythonCalls

_MARKS = ("functools", "<|tool_call|>", "<tool_call>")
"""What some models write before a list of calls, as Phi-4-mini and Granite 3.1 do."""
_NAMED = re.compile(r"\s*+(?P<name>[\w.-]++)\s*+(?=\{)")
"""The name in front of the arguments, where nothing else tells a call from text."""
_NAME_BEGUN = re.compile(r"([\w.-]++)(?:\s++|\[[A-Z_]*+(?:\]\w*+)?)*+\Z")
"""What may still become one, with Mistral's marks behind the name or without."""
_SPACE = " \t\r\n["


class Found(NamedTuple):
    """What stands at the beginning.

    Attributes:
        is_open: Whether it is not certain yet.
        call: A call that begins, or None for text.
        at: Where that begins.
    """

    is_open: bool = False
    call: JsonCall | PythonCalls | None = None
    at: int = 0


TEXT, OPEN = Found(), Found(is_open=True)


def find_bare(form: Form, schemas: Mapping[str, Mapping[str, Any]], held: str, most: int) -> Found:
    """Returns what an answer begins with, the same in pieces of every size.

    Args:
        form: How the model writes calls.
        schemas: The parameters of each function as JSON Schemas.
        held: The answer so far.
        most: Characters in which it must be certain.
    """
    if form.begin and form.begin.startswith(held.lstrip()):
        return _open(held, most)
    text = held[:most].lstrip(_SPACE)
    if form.name in PYTHONIC:
        listed = held[:most].lstrip()
        if listed.startswith("["):
            return Found(call=PythonCalls(schemas), at=min(len(held), most) - len(listed))
        return TEXT if listed else _open(held, most)
    for mark in _MARKS:
        if text and mark.startswith(text):
            return _open(held, most)
        text = text.removeprefix(mark).lstrip(_SPACE)
    if not text:
        return _open(held, most)
    at = min(len(held), most) - len(text)
    if text[0] == "{":
        return Found(call=JsonCall(names=schemas), at=at)
    named = (form.named or _NAMED).match(text)
    if named is not None and named["name"] in schemas:
        return Found(call=JsonCall(named["name"]), at=at + named.end())
    return _open(held, most) if _may_be_name(text, schemas) else TEXT


def _may_be_name(text: str, names: Collection[str]) -> bool:
    begun = _NAME_BEGUN.match(text)
    if begun is None:
        return False
    return begun[1] in names if begun[1] != text else any(one.startswith(text) for one in names)


def _open(held: str, most: int) -> Found:
    return OPEN if len(held) < most else TEXT
