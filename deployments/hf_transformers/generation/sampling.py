"""Chooses the next token of each sequence of a batch by that sequence's own fields and seed.

The same for every way of batching, so that a request gets the same tokens alone and among others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from deployments.hf_transformers.generation.binding import Follower, mask_rows
from truthgpt_serve.server.text.sampling import Sampling


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token was.

    Attributes:
        token: Its id.
        logprob: The natural logarithm of its probability; None for a prompt's first token.
        top: The likeliest tokens in its place with theirs, the likeliest first.
    """

    token: int
    logprob: float | None
    top: list[tuple[int, float]]

    def to_entry(self) -> dict[str, Any]:
        """Returns it as a class gives it to the server."""
        top = [{"token_id": token, "logprob": value} for token, value in self.top]
        return {"token_id": self.token, "logprob": self.logprob, "top": top}


@dataclass(slots=True)
class Row:
    """One sequence in the sampler.

    Attributes:
        sampling: Its fields.
        prompt: Its prompt's token ids.
        end_ids: Tokens that end it.
        tokens: The tokens that were chosen so far.
        generator: Its random numbers; made with the first.
        num_top: How many of the likeliest tokens are noted beside each token, or None for no log
            probabilities.
        logprobs: The log probabilities of `tokens`, where they are wanted.
        follower: Follows the answer through the grammar that binds it, if one does.
        is_changed: Whether `sampling` changes logits.
    """

    sampling: Sampling
    prompt: list[int]
    end_ids: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    generator: torch.Generator | None = None
    num_top: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    follower: Follower | None = None
    is_changed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_changed = self.sampling.changes_logits


def choose_tokens(logits: torch.Tensor, rows: list[Row | None]) -> torch.Tensor:
    """Returns the next token of each row and notes it there.

    Args:
        logits: `[rows, vocabulary]`, of any float type.
        rows: One for each row of the logits; None takes the likeliest token and notes nothing.

    Returns:
        `[rows]`, int64, on the logits' device.
    """
    scores = logits.float()
    wants = _Wants(rows)
    if wants.changed or wants.followers:
        scores = scores.clone()
        for index, changed in wants.changed.items():
            _change(scores[index], changed)
    if wants.followers:
        mask_rows(scores, wants.followers)
    tokens = scores.argmax(dim=-1)
    if wants.drawn:
        drawn = list(wants.drawn)
        tokens[drawn] = _draw(scores[drawn], list(wants.drawn.values()))
    if wants.noted:
        _note_logprobs(logits, wants.noted, tokens)
    for row, token in zip(rows, tokens.tolist(), strict=True):
        if row is not None:
            row.tokens.append(token)
            if row.follower is not None:
                row.follower.accept(token)
    return tokens


class _Wants:
    """What the rows of a batch want beside their likeliest tokens, by their numbers."""

    __slots__ = ("changed", "drawn", "followers", "noted")

    def __init__(self, rows: list[Row | None]) -> None:
        self.changed: dict[int, Row] = {}
        self.drawn: dict[int, Row] = {}
        self.noted: dict[int, Row] = {}
        self.followers: dict[int, Follower] = {}
        for index, row in enumerate(rows):
            if row is None:
                continue
            if row.is_changed:
                self.changed[index] = row
            if row.sampling.temperature > 0:
                self.drawn[index] = row
            if row.num_top is not None:
                self.noted[index] = row
            if row.follower is not None:
                self.followers[index] = row.follower


def _note_logprobs(logits: torch.Tensor, rows: dict[int, Row], tokens: torch.Tensor) -> None:
    """Notes the log probabilities of tokens in the rows that want them."""
    found = list(rows)
    num_top = [row.num_top or 0 for row in rows.values()]
    entries = token_logprobs(logits[found], tokens[found], num_top)
    for row, entry in zip(rows.values(), entries, strict=True):
        row.logprobs.append(entry)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: list[int]
) -> list[TokenLogprob]:
    """Returns the log probabilities of tokens by the model's own logits, before any change of them.

    Args:
        logits: `[rows, vocabulary]`.
        tokens: `[rows]`, int64.
        num_top: How many of the likeliest tokens each row wants beside its own.
    """
    scores = logits.float().log_softmax(dim=-1)
    own = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).tolist()
    values, ids = scores.topk(min(max(num_top, default=0), scores.shape[-1]), dim=-1)
    return [
        TokenLogprob(token, value, list(zip(top_ids[:number], top[:number], strict=True)))
        for token, value, top_ids, top, number in zip(
            tokens.tolist(), own, ids.tolist(), values.tolist(), num_top, strict=True
        )
    ]


def _change(scores: torch.Tensor, row: Row) -> None:
    """Applies the penalties of one row to its logits in place."""
    sampling, device = row.sampling, scores.device
    if sampling.logit_bias:
        biased, values = zip(*sampling.logit_bias, strict=True)
        scores[list(biased)] += torch.tensor(values, device=device)
    if sampling.min_tokens > len(row.tokens) and row.end_ids:
        scores[list(row.end_ids)] = -torch.inf
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.tokens}), device=device)
        values = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if row.tokens and (sampling.presence_penalty or sampling.frequency_penalty):
        made, counts = torch.tensor(row.tokens, device=device).unique(return_counts=True)
        scores[made] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(scores: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    """Draws a token for each row, `[rows, vocabulary]` to `[rows]`.

    The largest of probability over exponential noise is a draw from the distribution, and the noise
    of a row depends on its own generator only.
    """
    device = scores.device
    given = [row.sampling for row in rows]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=device).unsqueeze(-1)

    scores = scores / column([sampling.temperature for sampling in given])
    if any(s.top_k > 0 or s.top_p < 1 or s.min_p > 0 for s in given):
        ordered, order = scores.sort(dim=-1, descending=True)
        size = scores.shape[-1]
        limits = [float(s.top_k if s.top_k > 0 else size) for s in given]
        drop = torch.arange(size, device=device) >= column(limits)
        ordered = ordered.masked_fill(drop, -torch.inf)
        chances = ordered.softmax(dim=-1)
        # What precedes a token has top_p already: the token that reaches it stays.
        drop = chances.cumsum(dim=-1) - chances >= column([s.top_p for s in given])
        drop |= chances < column([s.min_p for s in given]) * chances[:, :1]
        drop[:, 0] = False
        ordered = ordered.masked_fill(drop, -torch.inf)
        scores = torch.empty_like(scores).scatter_(-1, order, ordered)
    chances = scores.softmax(dim=-1)
    noise = torch.empty_like(chances)
    for index, row in enumerate(rows):
        if row.generator is None:
            row.generator = torch.Generator(device).manual_seed(row.sampling.seed % 2**63)
        noise[index].exponential_(generator=row.generator)
    return (chances / noise).argmax(dim=-1)
