"""Answers that are lists of Python's calls, in pieces of every size."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.tool_answers import read_answer
from truthgpt_serve.server.text.tools.form import KEY
from truthgpt_serve.server.text.tools.forms import FORMS
from truthgpt_serve.server.text.tools.parser import CallParser
from truthgpt_serve.server.text.tools.pythonic import MAX_LIST
from truthgpt_serve.server.text.tools.template_form import find_form

FORM = {form.name: form for _, form in FORMS}["pythonic"]
CASES: dict[str, tuple[str, str, list[list[str]]]] = {
    "one": ("[add(a=1, s='x')]", "", [["add", '{"a":1,"s":"x"}']]),
    "two": ("\n[add(a=-1.5), sub()] ", "", [["add", '{"a":-1.5}'], ["sub", "{}"]]),
    "brackets and quotes": (
        """[add(s="]) \\" ' [", t={'k': [1, true, None]})]""",
        "",
        [["add", """{"s":"]) \\" ' [","t":{"k":[1,true,null]}}"""]],
    ),
    "raw line breaks": (
        """[add(a='1\n "2"\r\n', s="it's\n\\n\\\n",\n t=[\n1])]""",
        "",
        [["add", """{"a":"1\\n \\"2\\"\\r\\n","s":"it's\\n\\n","t":[1]}"""]],
    ),
    "text behind": ("[add(a=1)]\nI used [add].", "\nI used [add].", [["add", '{"a":1}']]),
    "unknown function behind": ("[add(a=1), x.y()]", "[add(a=1), x.y()]", []),
    "unknown function": ("[other(a=1)]", "[other(a=1)]", []),
    "no call": ("[1, 2] is a list", "[1, 2] is a list", []),
    "text": ("I add [add(a=1)]", "I add [add(a=1)]", []),
    "no literal": ("[add(a=open('x'))]", "[add(a=open('x'))]", []),
    "by place": ("[add(1)]", "[add(1)]", []),
    "cut off": ("[add(a=1", "[add(a=1", []),
    "nothing": ("", "", []),
}


def read(text: str, size: int, *, single: bool = False) -> tuple[str, list[list[str]]]:
    return read_answer(CallParser(FORM, {"add": {}, "sub": {}}, single=single), text, size)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("text", "said", "calls"), CASES.values(), ids=CASES)
def test_reading(text: str, said: str, calls: list[list[str]], size: int) -> None:
    assert read(text, size) == (said, calls)


def test_a_single_call() -> None:
    assert read("[add(a=1), sub()]", 4, single=True)[1] == [["add", '{"a":1}']]


def test_a_call_that_the_prompt_begins() -> None:
    parser = CallParser(FORM, {"add": {}})
    assert parser.feed(FORM.opening("add")) == []
    found = parser.feed("a=2)]")
    assert (found[0].name, found[1].arguments) == ("add", '{"a":2}')


def test_a_template_that_shows_the_form() -> None:
    def apply(messages: Any, **_: Any) -> str:
        calls = messages[-1].get("tool_calls", [])
        written = [
            f'{call["function"]["name"]}({KEY}="{call["function"]["arguments"][KEY]}")'
            for call in calls
        ]
        return f"[{', '.join(written)}]"

    assert find_form(apply) is FORM


def test_a_list_without_an_end_is_read_in_time_that_grows_with_its_length() -> None:
    started_s = time.process_time()
    text = "[add(s='" + "x" * (2 * MAX_LIST)
    assert read(text, 64) == (text, [])
    assert time.process_time() - started_s < 5
