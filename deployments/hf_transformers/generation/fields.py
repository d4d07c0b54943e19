"""A text request's inputs, checked and made into a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from deployments.hf_transformers.generation.job import TextCall
from deployments.hf_transformers.generation.plan import TextInfo
from deployments.hf_transformers.generation.sampling import Sampling
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_fields import SamplingFields, Stops
from truthgpt_serve.request_schema import Count, bad_field, read_request, refuse_unknown, wanted

SAMPLES = ("temperature", "top_p", "top_k", "min_p", "seed")
"""Fields that make a request one for sampling, unless `temperature` is 0."""


MAX_TOP = 1024
"""Most likeliest tokens that are noted beside each token; `serving.limits.max_logprobs` is the
limit of requests."""


def _check_ids(value: list[Any]) -> list[int]:
    if not value or any(type(token) is not int or token < 0 for token in value):
        raise wanted("a list of token ids")
    return value


def _check_constraint(value: Any) -> Any:
    if value is not None and type(value).__name__ != "CompiledGrammar":
        raise wanted("a compiled grammar, which `response_format` on OpenAI's routes becomes")
    return value


class TextInputs(SamplingFields):
    """The inputs of one request."""

    text: str | None = None
    token_ids: Annotated[list[Any], AfterValidator(_check_ids)] | None = None
    max_new_tokens: Count | None = None
    stop: Stops = Field(default_factory=list)
    add_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    prompt_logprobs: bool = False
    logit_bias: dict[int, float] = Field(default_factory=dict)
    constraint: Annotated[Any, AfterValidator(_check_constraint)] = None


def read_call(
    inputs: Mapping[str, Any],
    info: TextInfo,
    encode: Callable[[str, bool], list[int]],
    *,
    default_tokens: int,
    max_tokens: int | None,
    max_len: int,
    next_seed: Callable[[], int],
) -> TextCall:
    """Checks the inputs of one request.

    Args:
        inputs: See `TextInputs`.
        info: What the model says of itself.
        encode: Turns a text into token ids; the second argument is whether to add special tokens.
        default_tokens: `max_new_tokens` for a request that does not say.
        max_tokens: The most that one may say, or None.
        max_len: Most tokens of prompt and answer together.
        next_seed: Gives the seed of a request without one.

    Raises:
        RequestError: An input is missing or wrong, or the prompt is too long.
    """
    refuse_unknown(inputs, TextInputs.model_fields)
    request = read_request(TextInputs, inputs)
    prompt = _prompt(request, info, encode)
    if not prompt:
        raise bad_field("text", "is empty: the model needs at least one token to begin with")
    wanted = request.max_new_tokens or default_tokens
    if max_tokens is not None and (request.max_new_tokens or 0) > max_tokens:
        message = f"is {wanted}; this model makes at most {max_tokens} tokens"
        raise bad_field("max_new_tokens", message)
    room = max_len if info.encodes else max_len - len(prompt)
    if room < 1 or len(prompt) > max_len:
        # With a prompt that fills it all there is no room for the answer's first token.
        num_tokens = len(prompt) + (not info.encodes)
        raise ContextLengthError(max_len, num_tokens, param="text")
    bound = request.constraint is not None  # then the grammar says where the answer ends
    return TextCall(
        prompt=prompt,
        max_new_tokens=min(wanted, room),
        sampling=_sampling(request, info, next_seed),
        stops=tuple(request.stop),
        end_ids=frozenset() if request.ignore_eos and not bound else info.end_ids,
        num_top=request.logprobs,
        scores_prompt=request.prompt_logprobs and request.logprobs is not None,
        constraint=request.constraint,
    )


def _prompt(
    request: TextInputs, info: TextInfo, encode: Callable[[str, bool], list[int]]
) -> list[int]:
    if (request.text is None) == (request.token_ids is None):
        raise bad_field("text", "or `token_ids` is required, and not both")
    if request.token_ids is None:
        return encode(request.text or "", request.add_special_tokens)
    if (token := max(request.token_ids)) >= info.vocab_size:
        raise bad_field("token_ids", _beyond(token, info))
    return request.token_ids


def _beyond(token: int, info: TextInfo) -> str:
    return f"has {token}, but the model's vocabulary has {info.vocab_size} tokens, from 0"


def _sampling(request: TextInputs, info: TextInfo, next_seed: Callable[[], int]) -> Sampling:
    given = request.sampling
    given.pop("ignore_eos", None)
    if (token := max(request.logit_bias, default=0)) >= info.vocab_size:
        raise bad_field("logit_bias", _beyond(token, info))
    if min(request.logit_bias, default=0) < 0:
        raise bad_field("logit_bias", "has a token id below 0")
    if request.constraint is not None:
        given["min_tokens"] = 0
    given["logit_bias"] = tuple(request.logit_bias.items())
    base = info.sampled if any(name in given for name in SAMPLES) else info.sampling
    if "seed" not in given:
        given["seed"] = next_seed()
    return replace(base, **given)
