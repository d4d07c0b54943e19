"""Values between tags, as the schema of their parameter has them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from truthgpt_serve.server.text.tools.tagged_value import read_value

NUMBER, TEXT, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (NUMBER, "5", 5),
        (NUMBER, "five", "five"),
        (TEXT, "5", "5"),
        (TEXT, " a ", " a "),
        ({}, "5", 5),
        ({}, "[1, {}]", [1, {}]),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"type": ["string", "null"]}, "null", None),
        ({"anyOf": [TEXT, NULL]}, "5", "5"),
        ({"anyOf": [TEXT, NUMBER]}, "5", 5),
        ({"anyOf": [TEXT, {}]}, "5", 5),
        ({"enum": ["red", 7]}, " red", "red"),
        ({"enum": ["red", 7]}, "7", 7),
        ({"enum": ["7"]}, "7", "7"),
        ({"const": "boat"}, "boat\t", "boat"),
        ({**TEXT, "maxLength": 3}, " abc ", "abc"),
        ({**TEXT, "maxLength": 3}, " ab", " ab"),
        ({**TEXT, "maxLength": 4}, " abc ", "abc "),
        ({**TEXT, "maxLength": 2}, "abc", "abc"),
        ({**TEXT, "pattern": "^a$"}, " a ", "a"),
        ({"$ref": "#/$defs/name"}, "5", "5"),
        ({"$ref": "#/$defs/loop"}, "5", 5),
        ({"$ref": "#/$defs/nosuch"}, "5", 5),
        ({"enum": 5, "anyOf": 5, "type": 5, "maxLength": "x"}, "5", 5),
        (True, "5", 5),
    ],
)
def test_values(schema: Any, text: str, value: Any) -> None:
    defs = {"name": TEXT, "loop": {"$ref": "#/$defs/loop"}}
    found = read_value(text, {"properties": {"x": schema}, "$defs": defs}, "x")
    assert (found, type(found)) == (value, type(value))


def test_what_the_model_says() -> None:
    assert read_value("5", {"properties": {"x": NUMBER}}, "x", is_text=True) == "5"


@pytest.mark.parametrize("schema", [{}, {"properties": 5}, {"properties": {}}])
def test_without_a_schema(schema: dict[str, Any]) -> None:
    assert (read_value("5", schema, "x"), read_value("a", schema, "x")) == (5, "a")


@pytest.mark.parametrize("branches", [10, 300])
def test_references_that_lead_back_are_followed_a_few_times(branches: int) -> None:
    loop = {"anyOf": [{"$ref": "#/$defs/x"}] * branches}
    started = time.thread_time()
    found = read_value("5", {"properties": {"x": loop}, "$defs": {"x": loop}}, "x")
    assert time.thread_time() - started < 1
    assert found == 5
