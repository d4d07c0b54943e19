"""Compiles grammars whose texts are bound as their schemas and patterns say.

Patterns are rewritten first. xgrammar lets all but line breaks into a text with `maxLength` or
`minLength`, and an answer with a raw tab is no JSON. Nor does it leave out halves of surrogate
pairs, which decoders make several characters of. In tags it lets the mark behind a value into the
value.
"""

from __future__ import annotations

from typing import Any

import xgrammar as xgr

from truthgpt_serve.grammar.patterns import rewritten, with_patterns_rewritten

_BOUNDS = ("maxLength", "minLength")
_HIGH = r"-\ud7ff\ue000-\U0010ffff"
_NARROWED = {
    r"_characters ::= (([^\"\\\r\n]))": rf"_characters ::= (([\x20-\x21\x23-\x5b\x5d{_HIGH}]))",
    r"_characters ::= (([\0-\U0010ffff]))": rf"_characters ::= (([\x20-\x3b\x3d{_HIGH}]))",
}
"""Rules for a character of such a text, in JSON and in tags, and what they should be."""


class StrictCompiler:
    """Compiles as an `xgrammar.GrammarCompiler` does, but for that.

    Args:
        compiler: Compiles; what is not defined here is its.
    """

    def __init__(self, compiler: Any) -> None:
        self._compiler = compiler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiler, name)

    def compile_json_schema(self, schema: str, **options: Any) -> Any:
        """Returns the grammar of a schema, compiled; options are xgrammar's."""
        schema = with_patterns_rewritten(schema)
        if not _has_bounds(schema):
            return self._compiler.compile_json_schema(schema, **options)
        grammar = xgr.Grammar.from_json_schema(schema, **options)
        return self._compiler.compile_grammar(narrowed(grammar))

    def compile_regex(self, pattern: str, **options: Any) -> Any:
        """Returns the grammar of a pattern, compiled; options are xgrammar's."""
        return self._compiler.compile_regex(rewritten(pattern, is_all=True), **options)

    def compile_structural_tag(self, tag: Any, *args: Any) -> Any:
        """Returns the grammar of a structural tag, compiled; arguments are xgrammar's."""
        if args:
            return self._compiler.compile_structural_tag(
                [_with_patterns(one) for one in tag], *args
            )
        tag = with_patterns_rewritten(tag) if isinstance(tag, str) else tag
        if not isinstance(tag, str) or not _has_bounds(tag):
            return self._compiler.compile_structural_tag(tag)
        grammar = xgr.Grammar.from_structural_tag(tag)
        return self._compiler.compile_grammar(narrowed(grammar))


def _with_patterns(item: Any) -> Any:
    """Returns an `xgrammar.StructuralTagItem` whose schema has its patterns rewritten."""
    if not isinstance(item.schema_, str):
        return item
    return item.model_copy(update={"schema_": with_patterns_rewritten(item.schema_)})


def _has_bounds(text: str) -> bool:
    return any(word in text for word in _BOUNDS)


def narrowed(grammar: Any) -> Any:
    """Returns an `xgrammar.Grammar` without control characters in texts of bounded length."""
    text = wanted = str(grammar)
    for wide, narrow in _NARROWED.items():
        wanted = wanted.replace(wide, narrow)
    return grammar if wanted == text else xgr.Grammar.from_ebnf(wanted)
