"""Answers that may be calls, or else JSON: what the compiled grammar takes."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
import xgrammar

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.grammar.compile import Compiler
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.server.text.tools.alternatives import calls_alone, with_calls
from truthgpt_serve.server.text.tools.forms import FORMS, Form
from truthgpt_serve.server.text.tools.request import Tool, ToolFunction, read_tools

BY_NAME = {form.name: form for _, form in FORMS}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = Grammar(
    "json",
    '{"type":"object","properties":{"ok":{"type":"boolean"}},"required":["ok"]}',
    "response_format",
)
HERMES = '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    folder = make_tiny_llama(tmp_path_factory.mktemp("text"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    return Compiler(info.serialize_json(), any_whitespace=False, threads=1)


def takes(compiler: Compiler, form: Form, text: str, grammar: Grammar = ANSWER) -> bool:
    tools = [Tool(type="function", function=ToolFunction(name="look", parameters=CITY))]
    use = read_tools(tools, None, parallel=None)
    assert use is not None
    bound = with_calls(grammar, use, form)
    matcher = xgrammar.GrammarMatcher(
        compiler.compile(bound.kind, bound.text), terminate_without_stop_token=True
    )
    return matcher.accept_string(text) and matcher.is_completed()


@pytest.mark.parametrize(
    ("form", "call"),
    [
        ("hermes", HERMES),
        ("hermes", f"{HERMES}\n{HERMES}"),
        ("llama3_json", '{"name": "look", "parameters": {"city": "Oslo"}}'),
        ("mistral", '[{"name": "look", "arguments": {"city": "Oslo"}}]'),
    ],
)
def test_calls_and_answers(compiler: Compiler, form: str, call: str) -> None:
    found = BY_NAME[form]
    assert takes(compiler, found, call)
    assert takes(compiler, found, '{"ok":true}') or takes(compiler, found, '{"ok": true}')
    assert not takes(compiler, found, call.replace("Oslo", "Oslo, 1]}\n"))
    for other in ("Hello", '{"ok": 5}', call.replace("look", "see"), call.replace("city", "town")):
        assert not takes(compiler, found, other)


def test_any_object(compiler: Compiler) -> None:
    grammar = Grammar("json_object", "", "response_format")
    assert takes(compiler, BY_NAME["hermes"], '{"a": [1]}', grammar)
    assert takes(compiler, BY_NAME["hermes"], HERMES, grammar)
    assert not takes(compiler, BY_NAME["hermes"], "[1]", grammar)


@pytest.mark.parametrize("form", [form for form in BY_NAME.values() if form.arguments])
def test_a_call_alone_in_every_form(compiler: Compiler, form: Form) -> None:
    tools = [
        Tool(type="function", function=ToolFunction(name=name, parameters=CITY))
        for name in ("look", "see")
    ]
    use = read_tools(tools, "required", parallel=None)
    assert use is not None
    whole = f'{form.opening("see")}{{"city": "Oslo"}}{form.closing}'
    opening = form.opening()
    for begun in ("", opening) if form.head else ("",):
        bound = calls_alone(use, form, begun)
        grammar = compiler.compile(bound.kind, bound.text)
        text = whole.removeprefix(begun or (form.begin if form.is_bare else ""))
        for ending, is_taken in (("", True), ("x", False)):
            matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
            taken = matcher.accept_string(text + ending) and matcher.is_completed()
            assert taken == is_taken, (form.name, begun, text + ending)
