"""Reads what the text routes give a class, for families that take all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from truthgpt_serve.request_fields import SamplingFields, Stops
from truthgpt_serve.request_schema import Count, bad_field, wanted
from truthgpt_serve.server.text.abilities import check_largest
from truthgpt_serve.server.text.sampling import Sampling, SamplingDefaults
from truthgpt_serve.server.text_sizes import check_beginning

SAMPLES = ("temperature", "top_p", "top_k", "min_p", "seed")
"""Fields that make a request one for sampling, unless `temperature` is 0."""
MAX_TOP = 1024
"""Most likeliest tokens that are noted beside each token; `serving.limits.max_logprobs` is the
limit of requests."""


def _check_ids(value: list[Any]) -> list[int]:
    if not value or any(type(token) is not int or token < 0 for token in value):
        raise wanted("a list of token ids")
    return value


class TextInputs(SamplingFields):
    """The inputs of one request."""

    text: str | None = None
    token_ids: Annotated[list[Any], AfterValidator(_check_ids)] | None = None
    max_new_tokens: Count | None = None
    stop: Stops = Field(default_factory=list)
    stop_token_ids: Annotated[list[Any], AfterValidator(_check_ids)] = Field(default_factory=list)
    add_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    logit_bias: dict[int, float] = Field(default_factory=dict)


def read_prompt(
    request: TextInputs,
    encode: Callable[[str, bool], list[int]],
    vocab_size: int,
    max_len: int,
) -> list[int]:
    """Returns the token ids of a request's prompt, at least one.

    Args:
        request: The inputs.
        encode: Turns a text into token ids; the second argument is whether to add special tokens.
        vocab_size: Tokens that the model knows.
        max_len: The most tokens that it takes; the caller checks for those.

    Raises:
        RequestError: There is none, or a token is none of the model's.
        ContextLengthError: It is far too long.
    """
    if (request.text is None) == (request.token_ids is None):
        raise bad_field("text", "or `token_ids` is required, and not both")
    if request.token_ids is not None:
        check_largest("token_ids", max(request.token_ids), vocab_size)
        return request.token_ids
    text, special = request.text or "", request.add_special_tokens
    check_beginning(text, max_len, lambda part: len(encode(part, special)), param="text")
    prompt = encode(text, special)
    if not prompt:
        raise bad_field("text", "is empty: the model needs at least one token to begin with")
    return prompt


def read_end_ids(
    request: TextInputs, defaults: SamplingDefaults, vocab_size: int, *, ignore_eos: bool
) -> frozenset[int]:
    """Returns the tokens that end an answer: the model's, and those of the request.

    Args:
        request: The inputs.
        defaults: Has the model's.
        vocab_size: Tokens that the model knows.
        ignore_eos: Whether the model's do not count.

    Raises:
        RequestError: A token is none of the model's.
    """
    check_largest("stop_token_ids", max(request.stop_token_ids, default=-1), vocab_size)
    own = frozenset[int]() if ignore_eos else defaults.end_ids
    return own.union(request.stop_token_ids)


def read_sampling(
    request: TextInputs,
    defaults: SamplingDefaults,
    vocab_size: int,
    next_seed: Callable[[], int],
    *,
    is_bound: bool = False,
) -> Sampling:
    """Returns how the tokens of a request are chosen.

    Args:
        request: The inputs.
        defaults: For what they do not say.
        vocab_size: Tokens that the model knows.
        next_seed: Gives the seed of a request without one.
        is_bound: Whether a grammar says where the answer ends, and `min_tokens` does not.

    Raises:
        RequestError: `logit_bias` has a token that is none of the model's.
    """
    given = request.sampling
    given.pop("ignore_eos", None)
    check_largest("logit_bias", max(request.logit_bias, default=0), vocab_size)
    if min(request.logit_bias, default=0) < 0:
        raise bad_field("logit_bias", "has a token id below 0")
    if is_bound:
        given["min_tokens"] = 0
    given["logit_bias"] = tuple(request.logit_bias.items())
    base = defaults.sampled if any(name in given for name in SAMPLES) else defaults.sampling
    if "seed" not in given:
        given["seed"] = next_seed()
    return replace(base, **given)
