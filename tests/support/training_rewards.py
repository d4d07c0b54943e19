"""Reward functions for the tests of `grpo`.

Knows no test.
"""

from __future__ import annotations

from typing import Any

WANTED = "the"


def counts_the(
    prompts: list[str], completions: list[str], wanted: list[str], **_: Any
) -> list[float]:
    """Rewards each answer for how often its row's column `wanted` is in it."""
    assert len(prompts) == len(completions) == len(wanted)
    return [float(text.count(word)) for text, word in zip(completions, wanted, strict=True)]


def counts_words(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Rewards each answer to a chat for its words."""
    assert all(isinstance(prompt, list) for prompt in prompts)
    return [float(len(str(answer[0]["content"]).split())) for answer in completions]


NOT_A_FUNCTION = 3
