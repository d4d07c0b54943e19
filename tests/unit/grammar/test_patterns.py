"""Patterns bind what Python's `re` matches, within JSON and as a whole answer."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
import xgrammar

from truthgpt_serve.grammar.patterns import rewritten, with_patterns_rewritten
from truthgpt_serve.grammar.strict import StrictCompiler

END = 256
WORDS = "aéß中😀b"
CLASSES = ("é", "aé", "à-ü", "a-z", "中😀", r"\dé", r"\sß")
MANY = ("", "", "", "*", "+", "?", "{1,2}", "??", "*?", "{0,}", "{1,}", "{2}", "{0,1}")
CHARACTERS = "aéßü中😀b1 _-z"


@pytest.fixture(scope="module")
def compiler() -> StrictCompiler:
    words = [bytes([byte]) for byte in range(END)] + [b"</s>"]
    info = xgrammar.TokenizerInfo(
        words, vocab_type=xgrammar.VocabType.RAW, vocab_size=END + 1, stop_token_ids=[END]
    )
    return StrictCompiler(xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False))


def matchers(compiler: StrictCompiler, pattern: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": pattern}
    named = {"type": "object", "patternProperties": {pattern: {"type": "null"}}}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": schema}}
    whole = {"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}
    item = xgrammar.StructuralTagItem(begin="<", schema=json.dumps(schema), end=">")
    compiled = {
        "json": compiler.compile_json_schema(json.dumps(schema)),
        "name": compiler.compile_json_schema(json.dumps(named), any_whitespace=False),
        "tag": compiler.compile_structural_tag(json.dumps(tag)),
        "item": compiler.compile_structural_tag([item], ["<"]),
        "regex": compiler.compile_regex(pattern),
        "whole": compiler.compile_structural_tag(json.dumps(whole)),
    }
    return {kind: xgrammar.GrammarMatcher(one) for kind, one in compiled.items()}


def takes(kind: str, matcher: Any, text: str) -> bool:
    matcher.reset()
    quoted = json.dumps(text, ensure_ascii=False)
    forms = {"json": quoted, "name": f"{{{quoted}: null}}", "tag": quoted, "item": f"<{quoted}>"}
    data = forms.get(kind, text).encode()
    return all(matcher.accept_token(byte) for byte in data) and matcher.accept_token(END)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("é.", ["éa", "éé", "é中", "é😀"], ["é", "é\n", 'é"', "é\\", "é\t"]),
        ("[^é]*", ["", "aü", "😀"], ["é", "aé", 'a"']),
        ("Größe: [^;]+;", ["Größe: 中;"], ["Größe: ;", 'Größe: ";', "Größe: a\\;"]),
        (r"\é+", ["é", "éé"], ["\\é", "u00e9"]),
        ("[à-ü😀]", ["é", "😀"], ["a", "😁"]),
        (r"ß\W\S", ["ß-é"], ["ß--\n", 'ß-"', "ßaa"]),
        (r"(\d+px)?", ["", "12px"], ["1", "12"]),
        (r"a(?:b+c)??", ["a", "abc"], ["ab"]),
        (r"(?:(?:ac+)?){0,}", ["", "ac", "accac"], ["c", "cac"]),
        (r"((?:ac+|)){1,}", ["", "ac", "accac"], ["c", "cac"]),
        (r"[)?]\)?", [")", "?)"], ["", "))?"]),
    ],
)
def test_within_json(
    compiler: StrictCompiler, pattern: str, good: list[str], bad: list[str]
) -> None:
    found = matchers(compiler, pattern)
    for kind in ("json", "name", "tag", "item"):
        assert [text for text in good if not takes(kind, found[kind], text)] == []
        assert [text for text in bad if takes(kind, found[kind], text)] == []


def test_a_dot_is_no_line_break_in_a_whole_answer(compiler: StrictCompiler) -> None:
    found = matchers(compiler, r"a.+[.]\.")
    for kind in ("regex", "whole"):
        assert takes(kind, found[kind], 'a"é😀..')
        for text in ("ab\n..", "ab\r..", "a\u2028..", "ab.b"):
            assert not takes(kind, found[kind], text)


def random_pattern(chance: random.Random, depth: int = 0) -> str:
    def atom() -> str:
        kind = chance.random()
        if kind < 0.35 or depth > 2:
            return chance.choice(WORDS)
        if kind < 0.5:
            return "."
        if kind < 0.7:
            return f"[{chance.choice(('', '^'))}{chance.choice(CLASSES)}]"
        if kind < 0.8:
            return chance.choice((r"\d", r"\w", r"\s", r"\W", r"\S", r"\D"))
        return chance.choice(("(", "(?:")) + random_pattern(chance, depth + 1) + ")"

    parts = [
        "".join(atom() + chance.choice(MANY) for _ in range(chance.randint(1, 3)))
        for _ in range(chance.choice((1, 1, 2)))
    ]
    return "|".join(parts)


@pytest.mark.parametrize("seed", range(10))
def test_random_patterns_are_pythons(compiler: StrictCompiler, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(12):
        pattern = random_pattern(chance)
        found = matchers(compiler, pattern)
        for _ in range(40):
            text = "".join(chance.choices(CHARACTERS, k=chance.randint(0, 5)))
            is_match = re.fullmatch(pattern, text, re.ASCII) is not None
            took = {kind: takes(kind, one, text) for kind, one in found.items()}
            assert took == dict.fromkeys(found, is_match), (pattern, text)


def test_what_is_no_pattern_stays() -> None:
    schema: dict[str, Any] = {
        "properties": {"pattern": {"const": {"pattern": "é"}}, "enum": {"pattern": "ü"}},
        "$defs": {"a": {"enum": ["é", {"pattern": "é"}]}},
    }
    found = json.loads(with_patterns_rewritten(json.dumps(schema)))
    assert found["properties"]["enum"] == {"pattern": r"\u00fc"}
    assert found["properties"]["pattern"] == schema["properties"]["pattern"]
    assert found["$defs"] == schema["$defs"]
    for text in ('{"pattern": "a.b",  "x": 1}', '{"pattern": "é"', '{"pattern": 3}', '"pattern"'):
        assert with_patterns_rewritten(text) == text
    assert rewritten("a.[.é]\\.") == r"a.[.\u00e9]\."
