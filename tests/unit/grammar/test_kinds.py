"""What binds an answer, and what of a schema would not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.grammar_schemas import ordinary
from truthgpt_serve.grammar.kinds import MAX_NODES, as_compiled, find_ignored

INTEGER = {"type": "integer"}


@pytest.mark.parametrize("seed", range(40))
def test_an_ordinary_schema_binds_as_a_whole(seed: int) -> None:
    assert list(find_ignored(ordinary(seed))) == []


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/A", "title": "A", "default": None, "$defs": {"A": INTEGER}},
        {"type": "object", "properties": {"not": INTEGER, "contains": INTEGER, "if": INTEGER}},
        {"type": "object", "properties": {"a": {"enum": ["not", {"not": 1}]}}},
        {"oneOf": [{"const": 1}, {"const": "a"}], "discriminator": {"propertyName": "x"}},
        {"allOf": [INTEGER]},
        {"type": "string", "format": "whatever"},
        True,
    ],
)
def test_what_binds(schema: Any) -> None:
    assert list(find_ignored(schema)) == []


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "items": INTEGER, "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"type": "integer", "multipleOf": 7}}}, "multipleOf"),
        ({"$defs": {"A": {"not": INTEGER}}}, "not"),
        ({"if": INTEGER, "then": INTEGER}, "if"),
        ({"$ref": "https://example.com/a"}, "$ref"),
        ({"$ref": "#/$defs/A", "minimum": 3}, "minimum"),
        ({"anyOf": [INTEGER], "oneOf": [INTEGER]}, "oneOf"),
        ({"allOf": [INTEGER, {"minimum": 3}]}, "allOf"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, "pattern"),
        ({"patternProperties": {"a": INTEGER}, "properties": {"a": INTEGER}}, "patternProperties"),
        ({"enum": [1, 50], "maximum": 10}, "enum"),
    ],
)
def test_what_does_not_bind_is_named(schema: Any, named: str) -> None:
    assert any(f"`{named}`" in problem or named in problem for problem in find_ignored(schema))
    with pytest.raises(ValueError, match=r"cannot|must be one of the schema's own"):
        as_compiled("json", json.dumps(schema))


def test_a_schema_without_end_is_refused() -> None:
    schema: Any = {"anyOf": [{}] * (MAX_NODES + 1)}
    assert any("parts" in problem for problem in find_ignored(schema))


def test_choices_are_texts_as_they_are() -> None:
    kind, text = as_compiled("choice", '["a \\"b\\"", "c\\\\d\\n", "é"]')
    assert (kind, text) == ("grammar", 'root ::= "a \\"b\\"" | "c\\\\d\\n" | "é"')


def test_the_two_languages_of_grammars() -> None:
    assert as_compiled("grammar", 'root ::= "a"')[0] == "grammar"
    assert as_compiled("grammar", 'start: "a"')[0] == "lark"
