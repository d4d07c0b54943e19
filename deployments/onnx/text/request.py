"""A text request's inputs, checked and made into a call."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from deployments.onnx.config import OnnxSettings
from deployments.onnx.text.files import TextInfo
from deployments.onnx.text.sampling import Sampling
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_fields import SamplingFields, Stops
from truthgpt_serve.request_schema import Count, bad_field, read_request, refuse_unknown, wanted

SAMPLES = ("temperature", "top_p", "top_k", "min_p", "seed")
"""Fields that make a request one for sampling, unless `temperature` is 0."""
MAX_TOP = 1024


@dataclass(frozen=True, slots=True)
class TextCall:
    """One text to make.

    Attributes:
        prompt: Its token ids, at least one.
        max_new_tokens: Tokens of the answer, at most.
        sampling: How they are chosen.
        stops: Texts that end it.
        end_ids: Tokens that end it.
        num_top: Likeliest tokens that are listed with each token; None for no log probabilities.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    end_ids: frozenset[int]
    num_top: int | None


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
    add_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    logit_bias: dict[int, float] = Field(default_factory=dict)


def read_call(
    inputs: Mapping[str, Any], info: TextInfo, settings: OnnxSettings, vocab_size: int
) -> TextCall:
    """Checks the inputs of one request.

    Raises:
        RequestError: An input is missing or wrong, or the prompt is too long.
    """
    refuse_unknown(inputs, TextInputs.model_fields)
    request = read_request(TextInputs, inputs)
    if (request.text is None) == (request.token_ids is None):
        raise bad_field("text", "or `token_ids` is required, and not both")
    prompt: list[int] = request.token_ids or info.tokenizer.encode(
        request.text or "", add_special_tokens=request.add_special_tokens
    )
    if not prompt:
        raise bad_field("text", "is empty: the model needs at least one token to begin with")
    for name, tokens in (("token_ids", request.token_ids), ("logit_bias", request.logit_bias)):
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            raise bad_field(name, f"has a token outside the model's {vocab_size}, from 0")
    room = info.max_model_len - len(prompt)
    if room < 1:
        raise ContextLengthError(info.max_model_len, len(prompt) + 1, param="text")
    return TextCall(
        prompt=prompt,
        max_new_tokens=min(request.max_new_tokens or settings.default_max_new_tokens, room),
        sampling=_sampling(request, info),
        stops=tuple(request.stop),
        end_ids=frozenset() if request.ignore_eos else info.end_ids,
        num_top=request.logprobs,
    )


def _sampling(request: TextInputs, info: TextInfo) -> Sampling:
    given = request.sampling
    given.pop("ignore_eos", None)
    given["logit_bias"] = tuple(request.logit_bias.items())
    base = info.sampled if any(name in given for name in SAMPLES) else info.sampling
    given.setdefault("seed", secrets.randbits(63))
    return replace(base, **given)
