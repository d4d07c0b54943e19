"""Reward functions for the tests of `grpo` and `ppo`.

Knows no test.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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


def gives_nothing(**_: Any) -> None:
    """Returns nothing, as a function without `return` does."""


def gives_too_few(**_: Any) -> list[float]:
    """Returns one reward for all."""
    return [1.0]


def gives_no_number(completions: list[str], **_: Any) -> list[float | None]:
    """Returns no reward for the second answer."""
    return [None if at == 1 else 1.0 for at, _ in enumerate(completions)]


def gives_an_array(**_: Any) -> Any:
    """Returns rewards as numpy does."""
    return np.array([0.5, 1.0])


async def gives_later(completions: list[str], **_: Any) -> list[float]:
    """Returns rewards asynchronously."""
    return [1.0] * len(completions)


def counts_e(completions: list[str], **_: Any) -> list[float]:
    """Rewards each answer for the share of its letters that are an e."""
    return [text.count("e") / max(1, len(text)) for text in completions]
