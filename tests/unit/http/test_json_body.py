"""JSON in and out, and the fields that every request has."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.http.json_body import as_whole
from truthgpt_serve.server.embeddings.request import parse_embedding
from truthgpt_serve.server.text.request import parse_completion


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (2, 2), (2.0, 2), (-3.0, -3), (2.0**53, 2**53), (2**70, 2**70), (1.5, None),
        (2.0**54, None), (float("inf"), None), (float("nan"), None), (True, None), ("2", None),
        (None, None), ([2], None),
    ],
)  # fmt: skip
def test_whole_numbers(value: Any, whole: int | None) -> None:
    found = as_whole(value)
    assert (found, type(found)) == (whole, type(whole))


def test_requests_hold_whole_numbers_as_such() -> None:
    body = {"model": "m", "prompt": "p", "max_tokens": 4.0, "top_k": 5.0, "n": 1.0, "seed": 7.0}
    request = parse_completion(body)
    assert repr(request.max_new_tokens) == "4"
    assert repr(sorted(request.sampling.items())) == "[('seed', 7), ('top_k', 5)]"
    for ids in ([1.0, 2], [[1.0, 2]]):
        found = parse_embedding({"model": "m", "input": ids, "dimensions": 8.0})
        assert repr(found.inputs) == "[{'token_ids': [1, 2], 'dimensions': 8}]"
