"""What holds for every answer in every form: nothing is lost, and calls are calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tool_answers import read_pieces
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import ANY, FORMS, HERMES, PYTHONIC
from truthgpt_serve.server.text.tools.harmony import HARMONY
from truthgpt_serve.server.text.tools.parser import CallParser

ALL = list({form.name: form for form in (*(form for _, form in FORMS), HERMES, ANY)}.values())
ALL = [form for form in ALL if form.name != HARMONY]
SCHEMAS: dict[str, Any] = {
    "add": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}}},
    "sub": {},
}
FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "<function=add>", "</function>", "<parameter=a>", "functools"),
    *("</parameter>", "{", "}", "[", "]", "(", ")", "```", ",", ";", "\n", " ", "1", "-", "a="),
    *('{"name": "add", "arguments": {', '{"name": "add", "parameters": {}}', "functions.add:0"),
    *(
        "<arg_key>a</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "add",
        "sub",
        "[add(",
        "call:add{",
        "add{",
        "{}}",
    ),
)
CONTROL = ("\x00", "\t", "\r", "\\", "\\n", "\N{SNOWMAN}")


def call_of(form: Form, word: str) -> str:
    """Returns a call as a model writes it, with a word among its arguments."""
    if form.quote:
        return f"{form.opening('add')}s:{form.quote}{word}{form.quote}{form.closing}"
    if form.name in PYTHONIC:
        return f"{form.opening('add')}s='{word}'{form.closing}"
    if form.arguments:
        return f'{form.opening("add")}{{"s": "{word}"}}{form.closing}'
    inner = f"<arg_key>s</arg_key>\n<arg_value>{word}</arg_value>"
    if form.name != "glm45":
        mark = form.opening("add").rpartition("<")[2].partition("invoke")[0]
        mark = "" if mark.startswith("function") else mark
        given = "=s" if "function=" in form.opening("add") else ' name="s"'
        inner = f"<{mark}parameter{given}>{word}</{mark}parameter>"
    return form.opening("add") + inner + form.closing


@st.composite
def answers(draw: st.DrawFn, form: Form) -> tuple[list[str], list[str]]:
    """Draws an answer in its pieces, and the words in it."""
    opening = form.opening("add")
    marks = sorted({*form.marks, form.behind, opening, form.opening(), form.closing} - {""})
    kinds = st.sampled_from(("word", "call", "text", "mark", "mark", "control"))
    parts, words = [], []
    for number, kind in enumerate(draw(st.lists(kinds, max_size=12))):
        word = f"qw{number}z"
        if kind in ("word", "call"):
            words.append(word)
            parts.append(f" {word} " if kind == "word" else call_of(form, word))
        else:
            pool = {"text": FRAGMENTS, "mark": marks or FRAGMENTS, "control": CONTROL}[kind]
            parts.append(draw(st.sampled_from(pool)))
    text = "".join(parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=40)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)], words


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_every_answer(form: Form, data: st.DataObject) -> None:
    pieces, words = data.draw(answers(form))
    text = "".join(pieces)
    said, calls = read_pieces(CallParser(form, SCHEMAS), [text])
    assert read_pieces(CallParser(form, SCHEMAS), pieces) == (said, calls)
    assert read_pieces(CallParser(form, SCHEMAS), list(text)) == (said, calls)
    given = [json.loads(arguments) for _, arguments in calls]
    assert all(isinstance(arguments, dict) for arguments in given)
    found = said + json.dumps(given)
    assert [word for word in words if word not in found] == []
    # Outside of calls, only what frames them is left out.
    if not calls:
        assert said == text


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_a_call_and_text_around_it(form: Form) -> None:
    before = "" if form.is_bare and not form.begin else "One. "
    said, calls = read_pieces(
        CallParser(form, SCHEMAS), [f"{before}{call_of(form, 'x')} Two {{}}."]
    )
    assert (said.split(), [name for name, _ in calls]) == ([*before.split(), "Two", "{}."], ["add"])
    assert json.loads(calls[0][1]) == {"s": "x"}


@pytest.mark.parametrize("form", ALL, ids=lambda form: form.name)
def test_every_cut_of_a_call(form: Form) -> None:
    for end in range(len(whole := call_of(form, "x"))):
        parser = CallParser(form, SCHEMAS)
        deltas = [*parser.feed(whole[:end]), *parser.finish(cut=True)]
        names = [delta.name for delta in deltas if delta.name]
        text = "".join(delta.text for delta in deltas)
        assert (names, text) in ((["add"], ""), ([], whole[:end]))
