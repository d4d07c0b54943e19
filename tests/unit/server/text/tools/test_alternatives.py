"""Answers that may be calls, or else JSON: what the compiled grammar takes."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types
import numpy as np
import pytest
import transformers
import xgrammar

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.grammar_schemas import small_schema
from tests.support.tool_answers import read_answer
from truthgpt_serve.grammar.compile import Compiler
from truthgpt_serve.grammar.constraints import special_ids, without
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.server.text.tools.alternatives import calls_alone, with_calls
from truthgpt_serve.server.text.tools.form import Form
from truthgpt_serve.server.text.tools.forms import FORMS
from truthgpt_serve.server.text.tools.parser import CallParser
from truthgpt_serve.server.text.tools.request import NamedFunction, Tool, ToolFunction, read_tools

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


def answer_of(compiler: Compiler, info: Any, bound: Grammar, chance: random.Random) -> str:
    """Returns what a model may write, with tokens chosen by chance."""
    matcher = xgrammar.GrammarMatcher(compiler.compile(bound.kind, bound.text))
    mask = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    found, words = b"", info.decoded_vocab
    for _ in range(5000):
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: info.vocab_size]).tolist()
        going = [token for token in allowed if token not in info.stop_token_ids]
        if len(going) < len(allowed):
            return found.decode()
        # Characters of several tokens would not always be whole.
        plain = [token for token in going if words[token].isascii()]
        token = chance.choice(plain or going)
        matcher.accept_token(token)
        found += words[token]
    raise AssertionError("the answer has no end")


@pytest.mark.parametrize("form", [form for form in BY_NAME.values() if form.style])
def test_calls_in_tags_validate(form: Form) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained("models/story")
    info = without(xgrammar.TokenizerInfo.from_huggingface(tokenizer), special_ids(tokenizer))
    compiler = Compiler(info.serialize_json(), any_whitespace=False, threads=1)
    for seed in range(6):
        schema = small_schema(seed)
        tools = [
            Tool(type="function", function=ToolFunction(name=name, parameters=schema))
            for name in ("look", "see")
        ]
        for choice in ("required", NamedFunction("see")):
            use = read_tools(tools, choice, parallel=None)
            assert use is not None
            begun = form.opening(use.name)
            bound = calls_alone(use, form, begun)
            text = begun + answer_of(compiler, info, bound, random.Random(seed))
            said, calls = read_answer(CallParser(form, use.schemas), text, 7)
            assert (said, len(calls)) == ("", 1), text
            jsonschema.validate(json.loads(calls[0][1]), schema)


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
