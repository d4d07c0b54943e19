"""Numbers of which reading one could take a hundred times as long as reading another."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.json_decoding import SMALL_BYTES, decode_json
from truthgpt_serve.request_schema import read_text
from truthgpt_serve.server.tensors.datatypes import read_json
from truthgpt_serve.server.text.messages import parse_arguments

HARD = (
    "8.98846567431158053e307",
    "1.234567890123456789e-300",
    "179769313486231580793e288",
    "3e-310",
)
"""Near the largest and the smallest numbers of 64 bits."""
NUM_NUMBERS = 50_000


def as_arguments(numbers: str) -> Any:
    function = {"name": "f", "arguments": f'{{"a": {numbers}}}'}
    return parse_arguments({"role": "assistant", "tool_calls": [{"function": function}]})


@pytest.mark.parametrize("number", HARD)
@pytest.mark.parametrize(
    "read",
    [
        lambda numbers: parse_object(b'{"a": %b}' % numbers.encode()),
        lambda numbers: read_json("FP64", [NUM_NUMBERS], numbers.encode()),
        lambda numbers: read_text(list[float], numbers),
        as_arguments,
    ],
    ids=["body", "tensor", "form", "arguments"],
)
def test_no_number_takes_long(read: Callable[[str], Any], number: str) -> None:
    def spent(one: str) -> float:
        numbers = "[" + ",".join([one] * NUM_NUMBERS) + "]"
        began = time.thread_time()
        read(numbers)
        return time.thread_time() - began

    least = min(spent("1.5") for _ in range(3))
    assert min(spent(number) for _ in range(3)) < 5 * least + 0.1


def test_numbers_are_read_to_the_last_bit() -> None:
    rng = random.Random(3)
    texts = [*HARD, "-0.0", "1e5", "1E+5", "0.1", "5e-324", "1e-400", "1" * 40, "-7", "123.0e-2"]
    texts += [f"{rng.uniform(-1, 1)!r}e{rng.randint(-300, 300)}" for _ in range(500)]
    for text in texts:
        for whole in (text, text + " " * SMALL_BYTES):
            assert repr(decode_json(whole)) == repr(json.loads(text)), text


@pytest.mark.parametrize("text", ["1e400", "[1, -1e999]", '{"a": [2e308]}'])
def test_what_has_more_than_64_bits_is_refused_in_the_same_words(text: str) -> None:
    with pytest.raises(msgspec.DecodeError) as others:
        msgspec.json.decode(text)
    for whole in (text, text + " " * SMALL_BYTES):
        with pytest.raises(msgspec.DecodeError) as ours:
            decode_json(whole)
        assert str(ours.value) == str(others.value)
