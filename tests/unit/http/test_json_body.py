"""JSON bodies of very many values, which would keep a replica's event loop from all else."""

from __future__ import annotations

import gc
import json
import time
from typing import Any

import pytest

from truthgpt_serve.errors import TooLargeError
from truthgpt_serve.http.json_body import MAX_CONTAINERS, MAX_VALUES, parse_object

CONTAINERS = f"more than {MAX_CONTAINERS} lists and objects"
VALUES = f"more than {MAX_VALUES} values"


@pytest.mark.parametrize(
    ("unit", "number", "message"),
    [
        (b"{},", MAX_CONTAINERS, CONTAINERS),
        (b"[],", MAX_CONTAINERS, CONTAINERS),
        (b'{"a":"]\\"["},', MAX_CONTAINERS, CONTAINERS),
        (b"1,", MAX_VALUES, VALUES),
        (b'"",', MAX_VALUES, VALUES),
        (b'"\\\\",', MAX_VALUES, VALUES),
    ],
)
def test_too_many_values_are_refused(unit: bytes, number: int, message: str) -> None:
    with pytest.raises(TooLargeError, match=message):
        parse_object(b'{"a": [%b1]}' % (unit * number))
    number -= 1000
    assert len(parse_object(b'{"a": [%b1]}' % (unit * number))["a"]) == number + 1


@pytest.mark.parametrize("text", ["[{,", ", ", '"[', '\\",', "x[" * 5000 + '"', "\u4f60,"])
def test_what_stands_in_texts_is_not_counted(text: str) -> None:
    long = text * (3 * MAX_VALUES // len(text))
    value = {"a": [long, "[", {"b": [text[:9]] * 100_000}]}
    body = json.dumps(value, ensure_ascii=False).encode()
    assert parse_object(body) == value


def test_a_refused_body_takes_no_longer_than_one_that_is_taken() -> None:
    def spent(number: int) -> float:
        body = b'{"a": [%b1]}' % (b"[]," * number)
        began = time.thread_time()
        try:
            parse_object(body)
        except TooLargeError:
            assert number > MAX_CONTAINERS
        return time.thread_time() - began

    taken = min(spent(MAX_CONTAINERS - 100) for _ in range(2))
    assert min(spent(20 * MAX_CONTAINERS) for _ in range(2)) < 4 * taken


def test_a_large_body_is_read_without_collections() -> None:
    body = json.dumps({"a": [["b"]] * 100_000}).encode()
    seen: list[tuple[str, int]] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        seen.append((phase, info["generation"]))

    gc.callbacks.append(note)
    try:
        value = parse_object(body)
    finally:
        gc.callbacks.remove(note)
    assert len(value["a"]) == 100_000
    assert gc.isenabled()
    assert len(seen) <= 4  # a hundred without it; one may come when they are let on again
