"""Reads an answer of a model with a parser of tool calls, piece by piece.

Knows no test.
"""

from __future__ import annotations

from typing import Any


def read_answer(parser: Any, text: str, size: int) -> tuple[str, list[list[str]]]:
    """Returns the text of an answer, and name and arguments of each call.

    Args:
        parser: A new `CallParser`, or another one with its methods.
        text: The answer.
        size: Characters of a piece.
    """
    return read_pieces(parser, [text[at : at + size] for at in range(0, len(text), size)])


def read_pieces(parser: Any, pieces: list[str]) -> tuple[str, list[list[str]]]:
    """Does the same with an answer in these pieces."""
    said, calls = "", []
    for deltas in (*map(parser.feed, pieces), parser.finish()):
        for delta in deltas:
            said += delta.text
            if delta.name:
                calls.append([delta.name, ""])
            if delta.arguments:
                calls[-1][1] += delta.arguments
    assert len(calls) == parser.num_calls
    return said, calls
