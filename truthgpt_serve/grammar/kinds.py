"""What binds an answer, as the compiler takes it; refuses what the compiler would ignore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

ANY_OBJECT = '{"type":"object","additionalProperties":true}'

_IGNORED = frozenset(
    (
        *("multipleOf", "not", "if", "then", "else", "uniqueItems", "contains", "minContains"),
        *("maxContains", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef"),
        *("$recursiveRef", "unevaluatedItems", "propertyNames"),
    )
)
"""Keywords that no grammar is made of: an answer could break them."""
_WHOLE = frozenset(("$ref", "anyOf", "oneOf", "allOf"))
"""Keywords beside which other constraints are not read."""
_BESIDE = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
        *("nullable", "contentMediaType", "contentEncoding"),
    )
)
"""Keywords that say nothing about a value."""
PLAIN_KEYWORDS = frozenset(("enum", "const", "default", "examples", "example", "required"))
"""Keywords whose values are no schemas."""
SCHEMAS_BY_NAME = frozenset(("properties", "patternProperties", "$defs", "definitions"))
"""Keywords whose values are schemas by name."""
MAX_NODES = 100_000


def as_compiled(kind: str, text: str) -> tuple[str, str]:
    """Returns kind and text of a request's grammar as the compiler gets them.

    Args:
        kind: `json`, `json_object`, `regex`, `choice` or `grammar`.
        text: The schema, pattern or grammar; of choices a JSON list.

    Returns:
        The kind, one of `json`, `regex`, `grammar` (with `::=`) and `lark`, and the text.

    Raises:
        ValueError: It cannot bind an answer; the message is for the client.
    """
    if kind == "json_object":
        return "json", ANY_OBJECT
    if kind == "choice":
        return "grammar", _choices(json.loads(text))
    if kind == "json":
        if (problem := next(find_ignored(json.loads(text)), None)) is not None:
            raise ValueError(problem)
        return kind, text
    if kind == "grammar" and "::=" not in text:
        return "lark", text
    return kind, text


def _choices(choices: list[str]) -> str:
    return "root ::= " + " | ".join(f'"{_escaped(choice)}"' for choice in choices)


def _escaped(text: str) -> str:
    """Returns a text as it stands between the quotes of a grammar."""
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(
        named.get(one) or (f"\\u{ord(one):04x}" if ord(one) < 32 or ord(one) == 127 else one)
        for one in text
    )


def find_patterns(text: str) -> Iterator[str]:
    """Yields the regular expressions in a schema or tag; nothing if it is no JSON."""
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
            if isinstance(pattern := value.get("pattern"), str):
                yield pattern
            if isinstance(patterns := value.get("patternProperties"), dict):
                yield from patterns


def find_ignored(schema: Any) -> Iterator[str]:
    """Yields what of a JSON schema would not bind an answer, in words."""
    waiting = [schema]
    for _ in range(MAX_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            yield from _ignored_in(node)
            for key, value in node.items():
                if key in SCHEMAS_BY_NAME and isinstance(value, dict):
                    waiting += value.values()
                elif key not in PLAIN_KEYWORDS:
                    waiting.append(value)
    yield f"has more than {MAX_NODES} parts"


def _ignored_in(node: dict[str, Any]) -> Iterator[str]:
    keys = node.keys()
    for key in sorted(keys & _IGNORED):
        yield f"`{key}` cannot bind an answer of this model: leave it out of the schema"
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        yield f"`$ref` must be one of the schema's own, such as #/$defs/X, not {reference[:80]!r}"
    whole, others = sorted(keys & _WHOLE), sorted(keys - _WHOLE - _BESIDE)
    if len(whole) > 1 or (whole and others):
        beside = "`, `".join([*whole, *others])
        yield f"`{beside}` beside each other cannot all bind: put them into one of the branches"
    all_of = node.get("allOf")
    if isinstance(all_of, list) and len(all_of) > 1:
        yield "`allOf` of several schemas cannot bind an answer of this model: join them"
    if "pattern" in keys and keys & {"minLength", "maxLength", "format"}:
        yield "`pattern` beside a length or a format cannot bind: put the length into the pattern"
    if "patternProperties" in keys and "properties" in keys:
        yield "`patternProperties` beside `properties` cannot bind an answer of this model"
    if keys & {"enum", "const"} and keys & _OF_VALUES:
        yield "`enum` and `const` beside other constraints cannot bind: leave those out"


_OF_VALUES = frozenset(
    (
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength"),
        *("pattern", "properties", "items", "prefixItems", "minItems", "maxItems"),
    )
)
