"""A text request's inputs, checked and made into a call."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from deployments.onnx.config import OnnxSettings
from deployments.onnx.text.files import TextInfo
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_schema import read_request, refuse_unknown
from truthgpt_serve.server.text.class_inputs import (
    TextInputs,
    read_end_ids,
    read_prompt,
    read_sampling,
)
from truthgpt_serve.server.text.sampling import Sampling


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


def read_call(
    inputs: Mapping[str, Any], info: TextInfo, settings: OnnxSettings, vocab_size: int
) -> TextCall:
    """Checks the inputs of one request.

    Raises:
        RequestError: An input is missing or wrong, or the prompt is too long.
    """
    refuse_unknown(inputs, TextInputs.model_fields)
    request = read_request(TextInputs, inputs)
    prompt = read_prompt(request, partial(_encode, info.tokenizer), vocab_size, info.max_model_len)
    room = info.max_model_len - len(prompt)
    if room < 1:
        raise ContextLengthError(info.max_model_len, len(prompt) + 1, param="text")
    return TextCall(
        prompt=prompt,
        max_new_tokens=min(request.max_new_tokens or settings.default_max_new_tokens, room),
        sampling=read_sampling(request, info.defaults, vocab_size, partial(secrets.randbits, 63)),
        stops=tuple(request.stop),
        end_ids=read_end_ids(
            request, info.defaults, vocab_size, ignore_eos=bool(request.ignore_eos)
        ),
        num_top=request.logprobs,
    )


def _encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=special)
    return ids
