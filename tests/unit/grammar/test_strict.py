"""Texts of bounded length hold no raw control characters, in JSON and in tags of calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
import xgrammar

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.grammar.strict import StrictCompiler

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"s": {"type": "string", "minLength": 1, "maxLength": 3}},
    "required": ["s"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> StrictCompiler:
    folder = make_tiny_llama(tmp_path_factory.mktemp("text"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    return StrictCompiler(xgrammar.GrammarCompiler(info, max_threads=1))


def takes(compiled: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text) and matcher.is_completed())


@pytest.mark.parametrize("value", ["a", "a/b", "äöü", "a'b"])
def test_texts_that_may_come(compiler: StrictCompiler, value: str) -> None:
    text = json.dumps({"s": value}, ensure_ascii=False)
    assert takes(compiler.compile_json_schema(json.dumps(SCHEMA)), text)


@pytest.mark.parametrize("value", ["", "abcd", "a\tb", "\x00", "\x1f", "a\nb", 'a"'])
def test_texts_that_may_not(compiler: StrictCompiler, value: str) -> None:
    text = f'{{"s": "{value}"}}'
    assert not takes(compiler.compile_json_schema(json.dumps(SCHEMA)), text)
    tag = {"type": "json_schema", "json_schema": SCHEMA}
    whole = json.dumps({"type": "structural_tag", "format": tag})
    assert takes(compiler.compile_structural_tag(whole), '{"s": "ab"}')
    assert not takes(compiler.compile_structural_tag(whole), text)


def test_white_space_between_the_parts_stays(compiler: StrictCompiler) -> None:
    assert takes(compiler.compile_json_schema(json.dumps(SCHEMA)), '{\n\t"s": "a"\n}')
    options: dict[str, Any] = {"any_whitespace": False, "separators": (",", ":")}
    assert not takes(compiler.compile_json_schema(json.dumps(SCHEMA), **options), '{\n"s":"a"}')


@pytest.mark.parametrize("value", ["a<b", "</p", "a\nb", "abcd"])
def test_tags(compiler: StrictCompiler, value: str) -> None:
    tag = {"type": "json_schema", "json_schema": SCHEMA, "style": "qwen_xml"}
    compiled = compiler.compile_structural_tag(
        json.dumps({"type": "structural_tag", "format": tag})
    )
    assert takes(compiled, "<parameter=s>ab</parameter>")
    assert not takes(compiled, f"<parameter=s>{value}</parameter>")


def test_what_has_no_bounds_is_compiled_as_it_is(compiler: StrictCompiler) -> None:
    assert takes(compiler.compile_json_schema('{"type": "string"}'), '"a\\tb"')
    assert takes(compiler.compile_grammar('root ::= "a"'), "a")
