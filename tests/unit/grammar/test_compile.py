"""Patterns that would bind answers to what is no JSON, or to less than they say, are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
import xgrammar

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.grammar.compile import Compiler, UnusableError


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    folder = make_tiny_llama(tmp_path_factory.mktemp("text"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer)
    return Compiler(info.serialize_json(), any_whitespace=False, threads=1)


def schema_of(pattern: str) -> str:
    return json.dumps({"type": "array", "items": {"type": "string", "pattern": pattern}})


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)b", "^a(?!b)c$", "(?<=a)b", "(?<!a)b", 'a"b', r"\d{3}\"", r"a\\b", r"a\nb*"],
)
def test_patterns_that_cannot_bind(compiler: Compiler, pattern: str) -> None:
    with pytest.raises(UnusableError, match=r"looks ahead|JSON has as escapes"):
        compiler.examine("json", schema_of(pattern))
    schema = {"type": "json_schema", "json_schema": json.loads(schema_of(pattern))}
    tag = json.dumps({"type": "structural_tag", "format": schema})
    with pytest.raises(UnusableError, match=r"looks ahead|JSON has as escapes"):
        compiler.examine("structural_tag", tag)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{2}\d{4}$",
        r"^\S+@\S+\.\S+$",
        '[^"]+',
        r"[^\\]+",
        r"[\s\S]{1,3}",
        "[(?=]x",
        r"\(\?=a",
        "(?<year>[0-9]{4})",
        "(?:a|b)c",
        "é+",
        "[^é]*",
        "Größe: .*",
        "(a{1,1000}){1,9}",
        "",
    ],
)
def test_patterns_that_bind(compiler: Compiler, pattern: str) -> None:
    compiler.examine("json", schema_of(pattern))


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"\Aab\Z", r"`\A`; a pattern binds all"),
        (r"ab\z", r"`\z`; a pattern binds all"),
        (r"a[\h]b", r"unknown escape, `\h`"),
        (r"\Qa.b\E", r"unknown escape, `\Q`"),
    ],
)
def test_escapes_that_xgrammar_takes_for_letters(
    compiler: Compiler, pattern: str, word: str
) -> None:
    for kind, text in (("regex", pattern), ("json", schema_of(pattern))):
        with pytest.raises(UnusableError) as refusal:
            compiler.examine(kind, text)
        assert word in str(refusal.value)


@pytest.mark.parametrize("pattern", [r"^a\d\D\s\S\w\W$", r"\\A", r"\x41\u0041[\w\-\]]", r"\.\/\@"])
def test_escapes_that_are_known(compiler: Compiler, pattern: str) -> None:
    compiler.examine("regex", pattern)
