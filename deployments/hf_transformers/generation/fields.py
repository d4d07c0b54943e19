"""A text request's inputs, checked and made into a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from deployments.hf_transformers.generation.binding import Thoughts
from deployments.hf_transformers.generation.job import TextCall
from deployments.hf_transformers.generation.plan import TextInfo
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_schema import (
    NonNegative,
    RequestModel,
    bad_field,
    read_request,
    refuse_unknown,
    wanted,
)
from truthgpt_serve.server.text.class_inputs import (
    TextInputs,
    read_end_ids,
    read_prompt,
    read_sampling,
)


def _check_constraint(value: Any) -> Any:
    if value is not None and type(value).__name__ != "CompiledGrammar":
        raise wanted("a compiled grammar, which `response_format` on OpenAI's routes becomes")
    return value


class ThoughtsInput(RequestModel):
    """How an answer thinks first: see `Thoughts`."""

    begin_id: NonNegative
    end_id: NonNegative
    max_tokens: NonNegative
    is_begun: bool = False


class GenerationInputs(TextInputs):
    """The inputs of one request."""

    prompt_logprobs: bool = False
    constraint: Annotated[Any, AfterValidator(_check_constraint)] = None
    thoughts: ThoughtsInput | None = None


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
        inputs: See `GenerationInputs`.
        info: What the model says of itself.
        encode: Turns a text into token ids; the second argument is whether to add special tokens.
        default_tokens: `max_new_tokens` for a request that does not say.
        max_tokens: The most that one may say, or None.
        max_len: Most tokens of prompt and answer together.
        next_seed: Gives the seed of a request without one.

    Raises:
        RequestError: An input is missing or wrong, or the prompt is too long.
    """
    refuse_unknown(inputs, GenerationInputs.model_fields)
    request = read_request(GenerationInputs, inputs)
    prompt = read_prompt(request, encode, info.vocab_size, max_len)
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
        sampling=read_sampling(request, info.defaults, info.vocab_size, next_seed, is_bound=bound),
        stops=tuple(request.stop),
        end_ids=read_end_ids(
            request,
            info.defaults,
            info.vocab_size,
            ignore_eos=bool(request.ignore_eos) and not bound,
        ),
        num_top=request.logprobs,
        scores_prompt=request.prompt_logprobs and request.logprobs is not None,
        constraint=request.constraint,
        thoughts=_thoughts(request.thoughts, info.vocab_size),
    )


def _thoughts(given: ThoughtsInput | None, vocab_size: int) -> Thoughts | None:
    if given is None:
        return None
    if max(given.begin_id, given.end_id) >= vocab_size:
        raise bad_field("thoughts", f"has a token that is none of the model's {vocab_size}")
    return Thoughts(**given.model_dump())
