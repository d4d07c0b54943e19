"""Texts with their classes, and texts that are to be near each other, as token ids."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.data.bad_rows import BadRow
from truthgpt_serve.training.data.formats import Sample
from truthgpt_serve.training.data.rows import describe, text_problem
from truthgpt_serve.training.text.examples import Example
from truthgpt_serve.training.text.labels.pooling import default_prompt, lowers_case
from truthgpt_serve.training.text.messages import check_text

MAX_LABEL = 200
"""Characters of the name of a class."""


def max_tokens(cfg: Mapping[str, Any], tokenizer: Any) -> int:
    """Returns the tokens at which texts are cut: `data.max_seq_len`, or fewer by the model."""
    return int(min(cfg["data"]["max_seq_len"], tokenizer.model_max_length))


class _Texts:
    """Tokenizes texts as the service does, cut so that the tokens at their end stay."""

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._max_len = max_tokens(cfg, tokenizer)
        self._before, self._lowers = "", False

    def _ids(self, sample: Sample, part: str) -> list[int]:
        name = sample.name(part)
        text = self._before + check_text(sample.values.get(part), name)
        text = text.lower() if self._lowers else text
        ids: list[int] = self._tokenizer(
            text, truncation=True, max_length=self._max_len, verbose=False
        )["input_ids"]
        if not ids:
            raise BadRow(f"{name!r} has no tokens")
        return ids


class ClassExamples(_Texts):
    """Makes a text's tokens with the name of its class.

    Args:
        cfg: The whole configuration.
        tokenizer: The model's.
    """

    def __call__(self, sample: Sample) -> Example:
        """Returns `input_ids` and `label`, a text, of a sample.

        Raises:
            BadRow: It cannot be used.
        """
        label, name = sample.values.get("label"), sample.name("label")
        if isinstance(label, bool):
            label = str(label).lower()
        elif isinstance(label, float) and label.is_integer():
            label = int(label)
        if not isinstance(label, str | int) or not str(label).strip():
            raise BadRow(f"{name!r} must be text or a whole number, found {describe(label)}")
        if len(str(label)) > MAX_LABEL:
            raise BadRow(f"{name!r} is longer than {MAX_LABEL} characters (is it a text?)")
        if problem := text_problem(str(label)):
            raise BadRow(f"{name!r} {problem}")
        return {"input_ids": self._ids(sample, "text"), "label": str(label)}


class SentenceExamples(_Texts):
    """Makes the tokens of two or three texts that belong together, or are to be told apart.

    Args:
        cfg: The whole configuration.
        tokenizer: The model's.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        super().__init__(cfg, tokenizer)
        self._before, self._lowers = default_prompt(cfg), lowers_case(cfg)

    def __call__(self, sample: Sample) -> Example:
        """Returns `first_ids`, `second_ids`, `third_ids` (may be empty) and `score` of a sample.

        The first is the anchor, the second its positive and the third its negative. Two sentences
        with a score have no third.

        Raises:
            BadRow: It cannot be used.
        """
        third: list[int] = []
        score = None
        if "sentence1" in sample.values:
            first, second = self._ids(sample, "sentence1"), self._ids(sample, "sentence2")
            score = _score(sample.values.get("score"), sample.name("score"))
        else:
            first, second = self._ids(sample, "anchor"), self._ids(sample, "positive")
            if sample.values.get("negative") is not None:
                third = self._ids(sample, "negative")
        return {"first_ids": first, "second_ids": second, "third_ids": third, "score": score}


def _score(score: Any, name: str) -> float:
    if isinstance(score, str):  # the cell of a table
        with contextlib.suppress(ValueError):
            score = float(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or not -1 <= score <= 1:
        raise BadRow(f"{name!r} must be a number from -1 to 1, the wanted cosine (scale it)")
    return float(score)
