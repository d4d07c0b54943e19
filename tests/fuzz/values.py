"""Values that fields are not meant to have, and JSON that `json.dumps` cannot write."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

_MARK = "\x01raw:"
_MARKED = re.compile(rb'"\\u0001raw:(\w+)"')

RAW: dict[str, bytes] = {
    "nan": b"NaN",
    "infinity": b"Infinity",
    "minus_infinity": b"-Infinity",
    "above_float": b"1e999",
    "long_integer": b"9" * 5000,
    "lone_surrogate": b'"\\ud83d"',
    "nul": b'"a\\u0000b"',
    "no_utf8": b'"\xff\xfe"',
    "control": b'"a\nb"',
    "deep_list": b"[" * 5000 + b"]" * 5000,
    "deep_object": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "unfinished": b"[1, 2",
    "single_quotes": b"'text'",
    "bare_word": b"undefined",
    "leading_zero": b"007",
    "hex": b"0x1f",
}
"""Pieces of JSON, or of what is nearly JSON, by name."""


def raw(name: str) -> str:
    """Returns a text that `encode` replaces by the piece of that name."""
    return _MARK + name


def encode(value: Any) -> bytes:
    """Returns a value as JSON, with the pieces of `RAW` where `raw` put them."""
    text = json.dumps(value, allow_nan=True).encode()
    return _MARKED.sub(lambda found: RAW[found[1].decode()], text)


def odd_value(rng: random.Random) -> Any:
    """Returns a value of a random kind: wrong types, extremes, long and nested ones."""
    return rng.choice(_KINDS)(rng)


def _number(rng: random.Random) -> Any:
    return rng.choice(
        [
            0,
            -1,
            -0.0,
            0.5,
            1.5,
            1e-320,
            1e308,
            -1e308,
            2**31,
            2**32,
            -(2**31) - 1,
            2**53 + 1,
            2**63,
            -(2**63) - 1,
            2**64,
            10**30,
        ]
    )


def _text(rng: random.Random) -> Any:
    return rng.choice(
        [
            "",
            " ",
            "x",
            "0",
            "true",
            "null",
            "../../etc/passwd",
            "file:///etc/passwd",
            "{{ 7 * 7 }}",
            "http://127.0.0.1:9/x",
            "a" * 20000,
            "é" * 3000,
            "\u202etxet",
            "👩\u200d👦" * 50,
            "%00%s%n",
            "data:image/png;base64,AAAA",
            "\n" * 2000,
            "<|endoftext|>" * 20,
        ]
    )


def _list(rng: random.Random) -> Any:
    return rng.choice(
        [
            [],
            [[]],
            [None],
            [[], []],
            [1, "a", None],
            [""],
            [-1],
            [2**40],
            [1.5],
            [{}],
            [[[[1]]]],
            ["a"] * 3000,
            list(range(3000)),
            [[1, 2], [3]],
            [True, False],
        ]
    )


def _mapping(rng: random.Random) -> Any:
    wide = {f"key{number}": number for number in range(2000)}
    return rng.choice(
        [
            {},
            {"": ""},
            {"a": None},
            {"type": "x"},
            {"type": None},
            {"0": 1},
            wide,
            {"-1": 5},
            {"99999999": 100},
            {"$ref": "#"},
            {"type": "object", "properties": []},
        ]
    )


_KINDS = (
    lambda rng: rng.choice([None, True, False]),
    _number,
    _text,
    _list,
    _mapping,
    lambda rng: raw(rng.choice(list(RAW))),
)


def places(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values inside a JSON value, its own not included."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = []
    for key, inner in items:
        found.append((*prefix, key))
        found += places(inner, (*prefix, key))
    return found


def replace(value: Any, place: tuple[Any, ...], new: Any) -> None:
    """Puts `new` at a path of a JSON value."""
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = new


def remove(value: Any, place: tuple[Any, ...]) -> None:
    """Takes out what stands at a path of a JSON value."""
    for key in place[:-1]:
        value = value[key]
    del value[place[-1]]
