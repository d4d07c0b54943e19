"""Chooses the next token of one text by its request's fields and seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy

from deployments.onnx.signature import Array
from truthgpt_serve.server.text.sampling import Sampling


class Sampler:
    """Chooses the tokens of one text.

    Args:
        sampling: The fields.
        prompt: The prompt's token ids.
        end_ids: Tokens that end the text.
    """

    def __init__(self, sampling: Sampling, prompt: list[int], end_ids: frozenset[int]) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._end_ids = sorted(end_ids)
        self._made: Counter[int] = Counter()
        self._random = numpy.random.default_rng(sampling.seed % 2**64)

    def choose(self, logits: Array) -> int:
        """Returns the next token and notes it; `logits` are float32 `[vocabulary]`."""
        scores = self._changed(logits)
        sampling = self._sampling
        if sampling.temperature > 0:
            token = self._draw(scores / numpy.float32(sampling.temperature))
        else:
            token = int(scores.argmax())
        self._made[token] += 1
        return token

    def _changed(self, logits: Array) -> Array:
        sampling, scores = self._sampling, logits.copy()
        for token, value in sampling.logit_bias:
            scores[token] += value
        if sampling.min_tokens > self._made.total():
            scores[self._end_ids] = -numpy.inf
        if sampling.repetition_penalty != 1:
            seen = sorted({*self._prompt, *self._made})
            penalty, values = sampling.repetition_penalty, scores[seen]
            scores[seen] = numpy.where(values < 0, values * penalty, values / penalty)
        if self._made and (sampling.presence_penalty or sampling.frequency_penalty):
            made = list(self._made)
            counts = numpy.array([self._made[token] for token in made])
            scores[made] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        return scores

    def _draw(self, scores: Array) -> int:
        sampling = self._sampling
        order = numpy.argsort(-scores, kind="stable")
        if sampling.top_k > 0:
            order = order[: sampling.top_k]
        chances = _softmax(scores[order].astype(numpy.float64))
        # What precedes a token has top_p already: the token that reaches it stays.
        kept = (chances.cumsum() - chances < sampling.top_p) & (
            chances >= sampling.min_p * chances[0]
        )
        kept[0] = True
        chances = numpy.where(kept, chances, 0)
        return int(self._random.choice(order, p=chances / chances.sum()))


def logprob_entry(logits: Array, token: int, num_top: int) -> dict[str, Any]:
    """Returns how likely a token was by the model's own logits, as a class gives it to the server.

    Args:
        logits: float32 `[vocabulary]`.
        token: The chosen one.
        num_top: How many of the likeliest tokens are listed beside it.
    """
    scores = numpy.log(_softmax(logits.astype(numpy.float64)) + 1e-300)
    likeliest = numpy.argsort(-scores, kind="stable")[:num_top].tolist()
    top = [{"token_id": one, "logprob": float(scores[one])} for one in likeliest]
    return {"token_id": token, "logprob": float(scores[token]), "top": top}


def _softmax(scores: Array) -> Array:
    powers = numpy.exp(scores - scores.max())
    chances: Array = powers / powers.sum()
    return chances
