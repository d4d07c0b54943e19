"""A text request's inputs, checked and made into a call; knows the names of fields and no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from deployments.hf_transformers.generation.job import TextCall
from deployments.hf_transformers.generation.plan import TextFacts
from deployments.hf_transformers.generation.sampling import Sampling
from truthgpt_serve.errors import ContextLengthError, RequestError

Check = Callable[[Any], bool]

_WHOLE = "a whole number"
NUMBERS: dict[str, tuple[type | tuple[type, ...], Check, str]] = {
    "temperature": ((int, float), lambda v: 0 <= v <= 2, "a number from 0 to 2"),
    "top_p": ((int, float), lambda v: 0 < v <= 1, "a number above 0 and at most 1"),
    "top_k": (int, lambda v: v >= -1, f"{_WHOLE} of at least -1"),
    "min_p": ((int, float), lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "seed": (int, lambda v: -(2**63) <= v < 2**63, f"{_WHOLE} of 64 bits"),
    "repetition_penalty": ((int, float), lambda v: 0 < v <= 10, "a number above 0, at most 10"),
    "presence_penalty": ((int, float), lambda v: -2 <= v <= 2, "a number from -2 to 2"),
    "frequency_penalty": ((int, float), lambda v: -2 <= v <= 2, "a number from -2 to 2"),
    "min_tokens": (int, lambda v: v >= 0, f"{_WHOLE} of at least 0"),
}
"""Sampling fields: their types, their limits and how a message names these."""
SAMPLES = ("temperature", "top_p", "top_k", "min_p", "seed")
"""Fields that make a request one for sampling, unless `temperature` is 0."""
OTHERS = ("text", "max_new_tokens", "stop", "ignore_eos", "add_special_tokens")


def read_call(
    inputs: Mapping[str, Any],
    facts: TextFacts,
    encode: Callable[[str, bool], list[int]],
    *,
    default_tokens: int,
    max_tokens: int | None,
    max_len: int,
    next_seed: Callable[[], int],
) -> TextCall:
    """Checks the inputs of one request.

    Args:
        inputs: `text`; optionally `max_new_tokens`, `stop`, `ignore_eos`, `add_special_tokens` and
            the fields of `NUMBERS`.
        facts: What the model says of itself.
        encode: Turns a text into token ids; the second argument is whether to add special tokens.
        default_tokens: `max_new_tokens` for a request that does not say.
        max_tokens: The most that one may say, or None.
        max_len: Most tokens of prompt and answer together.
        next_seed: Gives the seed of a request without one.

    Raises:
        RequestError: An input is missing or wrong, or the prompt is too long.
    """
    unknown = [name for name in inputs if name not in NUMBERS and name not in OTHERS]
    if unknown:
        raise _bad(unknown[0], f"is unknown; known are {', '.join((*OTHERS, *NUMBERS))}")
    text = inputs.get("text")
    if not isinstance(text, str):
        raise _bad("text", "must be a string")
    prompt = encode(text, _flag(inputs, "add_special_tokens", default=True))
    if not prompt:
        raise _bad("text", "is empty: the model needs at least one token to begin with")
    wanted = _count(inputs.get("max_new_tokens"), max_tokens) or default_tokens
    room = max_len if facts.encodes else max_len - len(prompt)
    if room < 1 or len(prompt) > max_len:
        # With a prompt that fills it all there is no room for the answer's first token.
        num_tokens = len(prompt) + (not facts.encodes)
        raise ContextLengthError(max_len, num_tokens, param="text")
    return TextCall(
        prompt=prompt,
        max_new_tokens=min(wanted, room),
        sampling=_sampling(inputs, facts, next_seed),
        stops=_stops(inputs.get("stop")),
        end_ids=frozenset() if _flag(inputs, "ignore_eos", default=False) else facts.end_ids,
    )


def _sampling(
    inputs: Mapping[str, Any], facts: TextFacts, next_seed: Callable[[], int]
) -> Sampling:
    given = {
        name: value for name in NUMBERS if (value := _number(name, inputs.get(name))) is not None
    }
    base = facts.sampled if any(name in given for name in SAMPLES) else facts.sampling
    if "seed" not in given:
        given["seed"] = next_seed()
    return replace(base, **given)


def _number(name: str, value: Any) -> Any:
    if value is None:
        return None
    kinds, check, wanted = NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, kinds) or not check(value):
        raise _bad(name, f"must be {wanted}, not {value!r:.40}")
    return value


def _count(value: Any, limit: int | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _bad("max_new_tokens", f"must be {_WHOLE} of at least 1, not {value!r:.40}")
    if limit is not None and value > limit:
        raise _bad("max_new_tokens", f"is {value}; this model makes at most {limit} tokens")
    return value


def _flag(inputs: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = inputs.get(name, default)
    if not isinstance(value, bool):
        raise _bad(name, f"must be true or false, not {value!r:.40}")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops):
        raise _bad("stop", "must be a string or a list of strings, none of them empty")
    return tuple(stops)


def _bad(name: str, message: str) -> RequestError:
    return RequestError(f"`{name}` {message}", param=name)
