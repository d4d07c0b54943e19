"""Tokens are chosen by the request's fields, the same for the same seed."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from deployments.onnx.text.sampling import Sampler
from truthgpt_serve.server.text.sampling import Sampling

LOGITS = numpy.array([2.0, 1.0, 0.0, -1.0], numpy.float32)


def draw(number: int = 400, **fields: Any) -> list[int]:
    """Returns first tokens, each of a sampler of its own."""
    return [
        Sampler(Sampling(seed=n, **fields), [], frozenset()).choose(LOGITS) for n in range(number)
    ]


def test_zero_is_greedy_and_a_seed_repeats() -> None:
    assert set(draw(5)) == {0}
    assert draw(20, temperature=1.0) == draw(20, temperature=1.0)


def test_the_shares_are_those_of_the_logits() -> None:
    found = numpy.bincount(draw(2000, temperature=1.0), minlength=4) / 2000
    chances = numpy.exp(LOGITS) / numpy.exp(LOGITS).sum()
    assert numpy.abs(found - chances).max() < 0.04


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0}),
        ({"top_p": 0.7}, {0, 1}),
        ({"min_p": 0.2}, {0, 1}),
    ],
)
def test_unlikely_tokens_are_left_out(fields: dict[str, Any], kept: set[int]) -> None:
    assert set(draw(temperature=1.0, **fields)) == kept


def test_penalties_and_the_least_length_change_the_choice() -> None:
    used = Sampler(Sampling(presence_penalty=0.6, frequency_penalty=0.6), [], frozenset())
    assert [used.choose(LOGITS) for _ in range(3)] == [0, 1, 0]
    assert Sampler(Sampling(repetition_penalty=3.0), [0], frozenset()).choose(LOGITS) == 1
    least = Sampler(Sampling(min_tokens=1), [], frozenset({0}))
    assert [least.choose(LOGITS) for _ in range(2)] == [1, 0]
    assert Sampler(Sampling(logit_bias=((3, 9.0),)), [], frozenset()).choose(LOGITS) == 3
