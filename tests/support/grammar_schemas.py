"""Seeded schemas and grammars, ordinary ones and hostile ones, for tests of structured output.

`python -m tests.support.grammar_schemas SEED COUNT` prints them, a JSON line each.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_WORDS = ("name", "age", "city", "items", "price", "id", "tags", "status", "email", "note", "total")


def ordinary(seed: int) -> Schema:
    """Returns a schema as pydantic, zod or an OpenAPI file of a real service would have it."""
    chance = random.Random(seed)
    schema = _object(chance, depth=chance.randint(1, 3))
    if chance.random() < 0.3:
        schema["$defs"] = {"Address": _object(chance, depth=1), "Node": _tree()}
        schema["properties"]["address"] = {"$ref": "#/$defs/Address"}
        schema["properties"]["node"] = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    return schema


def _object(chance: random.Random, depth: int) -> Schema:
    names = chance.sample(_WORDS, chance.randint(1, 8))
    schema: Schema = {
        "title": chance.choice(_WORDS).title(),
        "type": "object",
        "properties": {name: _value(chance, depth - 1) for name in names},
    }
    if chance.random() < 0.8:
        schema["required"] = names[: chance.randint(1, len(names))]
    if chance.random() < 0.6:
        schema["additionalProperties"] = False
    return schema


def _value(chance: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[], Schema]] = [
        lambda: {"type": "string", "description": "A text.", "maxLength": 200},
        lambda: {"type": "integer", "minimum": 0, "maximum": chance.choice((10, 1000, 2**31))},
        lambda: {"type": "number", "exclusiveMinimum": 0},
        lambda: {"type": "boolean", "default": False},
        lambda: {"enum": ["open", "closed", "in progress"], "type": "string"},
        lambda: {"const": "text", "title": "Kind"},
        lambda: {"type": "string", "pattern": r"^[A-Z]{2}\d{4}$"},
        lambda: {"type": "string", "format": chance.choice(("date-time", "email", "uuid"))},
        lambda: {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        lambda: {"type": ["string", "null"]},
    ]
    if depth <= 0 or chance.random() < 0.5:
        return chance.choice(leaves)()
    if chance.random() < 0.5:
        return {"type": "array", "items": _value(chance, depth - 1), "minItems": 1, "maxItems": 5}
    return _object(chance, depth)


def _tree() -> Schema:
    child = {"$ref": "#/$defs/Node"}
    return {
        "type": "object",
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": child}},
        "required": ["value"],
    }


def small_schema(seed: int) -> Schema:
    """Returns a schema whose answers fit into the story model's 1024 tokens."""
    chance = random.Random(seed)

    def value(depth: int) -> Any:
        leaves: list[Any] = [
            {"type": "string", "maxLength": 12},
            {"type": "string", "pattern": "^[a-z]{2,6}-[0-9]{2}$"},
            {"type": "integer", "minimum": -5, "maximum": 4000},
            {"type": "number", "minimum": 0, "maximum": 10},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["red", "blue", 7, None]},
            {"const": "boat"},
            {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
            {"type": "string", "format": "date"},
            {"$ref": "#/$defs/Pair"},
        ]
        if depth <= 0 or chance.random() < 0.5:
            return chance.choice(leaves)
        if chance.random() < 0.4:
            low = chance.randint(0, 2)
            return {
                "type": "array",
                "items": value(depth - 1),
                "minItems": low,
                "maxItems": low + chance.randint(0, 2),
            }
        return thing(depth - 1)

    def thing(depth: int) -> Any:
        names = chance.sample(
            ("name", "age", "friends", "boat", "where", "why"), chance.randint(1, 4)
        )
        return {
            "type": "object",
            "properties": {name: value(depth) for name in names},
            "required": [name for name in names if chance.random() < 0.7],
            "additionalProperties": False,
        }

    pair = {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "integer", "maximum": 99}],
    }
    return {**thing(3), "$defs": {"Pair": {**pair, "minItems": 2, "maxItems": 2, "items": False}}}


def hostile(seed: int) -> Schema:
    """Returns the value of `structured_outputs` that should do harm: huge, endless or wrong."""
    chance = random.Random(seed)
    size = chance.choice((300, 3000, 20_000))
    kinds: list[Callable[[], Schema]] = [
        lambda: {"json": wide(size)},
        lambda: {"json": wide(size // 10, {"type": "string", "maxLength": 50})},
        lambda: {"json": doubling(chance.randint(10, 60))},
        lambda: {"json": {"allOf": [{"anyOf": [wide(5)] * 8}] * 8}},
        lambda: {"json": {"type": "string", "maxLength": 10 ** chance.randint(3, 9)}},
        lambda: {"json": {"type": "string", "pattern": "(a{1,1000}){1,1000}" * 20}},
        lambda: {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
        lambda: {"json": {"type": chance.choice(("foo", 5, None, ["foo"]))}},
        lambda: {"json": {"enum": [f"value {i}" for i in range(size)]}},
        lambda: {"json": {"type": "array", "items": wide(9), "minItems": size, "maxItems": size}},
        lambda: {"regex": "|".join(f"w{i}" for i in range(size))},
        lambda: {"regex": "(a{1,1000}){1,1000}" * chance.randint(1, 40)},
        lambda: {"regex": ".*" * size},
        lambda: {"regex": "(" * size + "a" + ")" * size},
        lambda: {
            "regex": chance.choice(("((", "[", "a{2,1}", "(?=a)b", "*", "\\", "(?P<a", "a\x00"))
        },
        lambda: {"choice": [f"c{i}" for i in range(size)]},
        lambda: {"choice": chance.choice(([], [1], "", [""] * size))},
        lambda: {"grammar": "root ::= a\na ::= b\nb ::= a"},
        lambda: {"grammar": 'root ::= "x" a\na ::= a'},
        lambda: {"grammar": "root ::= " + "(" * size + '"a"' + ")" * size},
        lambda: {"grammar": "root ::= (" + '"a"? ' * size + ")"},
        lambda: {"grammar": chance.choice(("root ::= nosuch", "root ::= (", "start: a", "", "x"))},
        lambda: {
            "structural_tag": chance.choice(("", "nonsense", "{}", "[]", '{"structures": 5}'))
        },
        lambda: {"json": nested(size)},
    ]
    return chance.choice(kinds)()


def wide(count: int, value: Schema | None = None) -> Schema:
    """Returns an object of so many optional properties."""
    return {
        "type": "object",
        "properties": {f"k{i}": value or {"type": "integer"} for i in range(count)},
    }


def nested(depth: int) -> Any:
    """Returns objects in each other, at most as deep as JSON can be written."""
    schema: Schema = {"type": "string"}
    for _ in range(min(depth, 80)):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def doubling(count: int) -> Schema:
    """Returns definitions of which each names the next one twice."""
    definitions: Schema = {f"d{count}": {"type": "integer"}}
    for i in range(count):
        following = {"$ref": f"#/$defs/d{i + 1}"}
        definitions[f"d{i}"] = {"type": "object", "properties": {"a": following, "b": following}}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


if __name__ == "__main__":
    first, number = int(sys.argv[1]), int(sys.argv[2])
    for one in range(first, first + number):
        print(json.dumps({"ordinary": ordinary(one), "hostile": hostile(one)}))
