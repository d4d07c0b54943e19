"""What the pages make of fields, events and answers."""

from __future__ import annotations

from truthgpt_serve.playground.code import Sent
from truthgpt_serve.playground.fragments import code_of, fault

HOSTILE = "<script>alert(1)</script>\"'"


def test_errors_and_code_are_escaped() -> None:
    assert "<script" not in fault(HOSTILE)
    sent = Sent("http://127.0.0.1:1/v1/embeddings", {"model": HOSTILE, "input": ["a"]})
    assert "<script" not in code_of(sent)
    assert code_of(sent).count("<pre ") == 3


def test_code_that_is_too_long_is_not_made() -> None:
    sent = Sent("http://127.0.0.1:1/v1/embeddings", {"model": "m", "input": ["x" * 110_000]})
    assert "too many to be shown" in code_of(sent)
    assert len(code_of(sent)) < 200
