"""How many tokens a request may use, before it is served."""

from __future__ import annotations

import json
from typing import Any

import pytest

from truthgpt_serve.access.estimate import MAX_ASKED, MAX_TOKENS, TokenEstimate


def estimate(body: Any, estimates: TokenEstimate | None = None) -> float:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (estimates or TokenEstimate()).estimate("team", text, 400)


@pytest.mark.parametrize(
    ("body", "completion"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "max_tokens": 10}, 20),
        ({"max_output_tokens": 30}, 30),
        ({"max_tokens": 10, "n": 3}, 30),
        ({}, MAX_TOKENS),
        ({"max_tokens": None, "n": None}, MAX_TOKENS),
        ({"max_tokens": -5, "n": -1}, MAX_TOKENS),
        ({"max_tokens": "many", "n": True}, MAX_TOKENS),
        ({"max_tokens": 10**30, "n": 10**30}, 1000 * MAX_ASKED),
        ([1, 2], MAX_TOKENS),
        (b"not json", MAX_TOKENS),
        (b"[" * 60_000, MAX_TOKENS),
    ],
)
def test_the_prompts_bytes_and_what_the_request_asks_for(body: Any, completion: float) -> None:
    assert estimate(body) == 100 + completion


def test_the_keys_past_bounds_what_it_asks_for() -> None:
    estimates = TokenEstimate()
    estimates.learn("team", 1000, 50)
    assert estimate({"max_tokens": 4096}, estimates) == 100 + MAX_TOKENS
    assert estimate({"max_tokens": 8}, estimates) == 108
    assert estimates.estimate("team", None, 9_000_000) == 1050
    for _ in range(100):
        estimates.learn("team", 0, 1000)
    assert estimate({"max_tokens": 4096}, estimates) == pytest.approx(1100, abs=0.1)
    assert estimates.estimate("other", None, 400) == 100 + MAX_TOKENS
