"""OpenAI's chat and completion requests, read and checked field by field.

Knows nothing of models, servers or Ray. Names and limits are those of OpenAI's API reference; the
sampling fields beyond it (`top_k`, `min_p`, ...) are vLLM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.json_body import as_whole, bad_field, parse_model, parse_stream, shown
from truthgpt_serve.server.text.messages import ChatMessage, read_messages


@dataclass(slots=True)
class TextRequest:
    """A request for text, checked.

    Attributes:
        model: The model name of the request.
        messages: The messages as chat templates take them, for chat; else None.
        prompt: The prompt, for completions; else an empty string.
        stream: Whether the answer comes as server-sent events.
        include_usage: Whether a stream ends with a chunk of token counts.
        max_new_tokens: The limit that the client gave, or None.
        stop: Texts that end the answer.
        sampling: The sampling fields that the request has, `stop` and `max_new_tokens` aside.
    """

    model: str
    messages: list[ChatMessage] | None = None
    prompt: str = ""
    stream: bool = False
    include_usage: bool = False
    max_new_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)


def parse_chat(body: Mapping[str, Any]) -> TextRequest:
    """Checks a body of `POST /v1/chat/completions`.

    Raises:
        RequestError: A field is missing or wrong; `param` names it.
        UnsupportedError: A field asks for what the generic application does not have.
    """
    request = TextRequest(model=parse_model(body), messages=read_messages(body.get("messages")))
    _refuse(body, _CHAT_REFUSED)
    _common(body, request)
    return request


def parse_completion(body: Mapping[str, Any]) -> TextRequest:
    """Checks a body of `POST /v1/completions`; errors as in `parse_chat`."""
    request = TextRequest(model=parse_model(body), prompt=_prompt(body.get("prompt")))
    _refuse(body, _COMPLETION_REFUSED)
    _common(body, request)
    return request


def _common(body: Mapping[str, Any], request: TextRequest) -> None:
    request.stream = parse_stream(body)
    request.include_usage = _include_usage(body.get("stream_options"), request.stream)
    for name in ("max_tokens", "max_completion_tokens"):
        limit = _number(body, name, _at_least(1), "a whole number of at least 1", whole=True)
        if limit is not None:
            request.max_new_tokens = int(limit)
    request.stop = _stops(body.get("stop"))
    for name in _SAMPLING.keys() & body.keys():
        test, wanted, whole = _SAMPLING[name]
        value = _number(body, name, test, wanted, whole=whole)
        if value is not None:
            request.sampling[name] = value
    for name in ("ignore_eos",):
        if name in body and body[name] is not None:
            if not isinstance(body[name], bool):
                raise bad_field(name, f"must be true or false, not {shown(body[name])}")
            request.sampling[name] = body[name]


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise bad_field("stream_options", f"must be an object, not {shown(options)}")
    if not stream:
        raise bad_field("stream_options", "is only allowed when `stream` is true")
    include = options.get("include_usage")
    if include is not None and not isinstance(include, bool):
        raise bad_field(
            "stream_options.include_usage", f"must be true or false, not {shown(include)}"
        )
    return bool(include)


def _prompt(value: Any) -> str:
    if value is None:
        raise bad_field("prompt", "is required")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_field("prompt", f"must be a string, not {shown(value)}")
    if len(value) > 1 or not isinstance(value[0], str):
        raise UnsupportedError(
            "`prompt` must be one string: this model takes neither several prompts nor token ids",
            param="prompt",
        )
    return value[0]


def _stops(value: Any) -> list[str]:
    if value is None:
        return []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise bad_field("stop", f"must be a string or a list of strings, not {shown(value)}")
    if "" in stops:
        raise bad_field("stop", "must not hold an empty string")
    return stops


def _number(
    body: Mapping[str, Any],
    name: str,
    test: Callable[[float], bool],
    wanted: str,
    *,
    whole: bool,
) -> int | float | None:
    value = body.get(name)
    if value is None:
        return None
    if whole:
        value = as_whole(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_field(name, f"must be {wanted}, not {shown(body[name])}")
    if not test(value):
        raise bad_field(name, f"must be {wanted}, not {value}")
    return value


def _at_least(low: float) -> Callable[[float], bool]:
    return lambda value: value >= low


def _between(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


_SAMPLING: dict[str, tuple[Callable[[float], bool], str, bool]] = {
    "temperature": (_between(0, 2), "a number from 0 to 2", False),
    "top_p": (lambda value: 0 < value <= 1, "a number above 0 and at most 1", False),
    "top_k": (_at_least(-1), "a whole number of at least -1", True),
    "min_p": (_between(0, 1), "a number from 0 to 1", False),
    "min_tokens": (_at_least(0), "a whole number of at least 0", True),
    "seed": (_between(-(2**63), 2**63 - 1), "a whole number of 64 bits", True),
    "presence_penalty": (_between(-2, 2), "a number from -2 to 2", False),
    "frequency_penalty": (_between(-2, 2), "a number from -2 to 2", False),
    "repetition_penalty": (lambda value: 0 < value <= 10, "a number above 0 and at most 10", False),
}


def _empty(value: Any) -> bool:
    return not value


def _one_or_none(value: Any) -> bool:
    return value == 1 and not isinstance(value, bool)


def _plain_text(value: Any) -> bool:
    return bool(value == {"type": "text"})


_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "n": (_one_or_none, "gives one answer for each request"),
    "logit_bias": (_empty, "has no logit bias"),
}
_CHAT_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **_REFUSED,
    "logprobs": (_empty, "has no log probabilities"),
    "top_logprobs": (_empty, "has no log probabilities"),
    "tools": (_empty, "has no tool calls"),
    "functions": (_empty, "has no function calls"),
    "response_format": (_plain_text, "answers in plain text only"),
    "modalities": (lambda value: bool(value == ["text"]), "answers in text only"),
    "audio": (_empty, "answers in text only"),
}
_COMPLETION_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **_REFUSED,
    "best_of": (_one_or_none, "gives one answer for each request"),
    "logprobs": (lambda value: value is False, "has no log probabilities"),
    "echo": (_empty, "does not repeat the prompt"),
    "suffix": (_empty, "does not insert text before a suffix"),
}
"""Fields of OpenAI's that only an engine can honour: when a value is harmless, why not."""


def _refuse(
    body: Mapping[str, Any], refused: Mapping[str, tuple[Callable[[Any], bool], str]]
) -> None:
    for name, (harmless, reason) in refused.items():
        value = body.get(name)
        if value is not None and not harmless(value):
            if name == "n" and (as_whole(value) or 0) < 1:
                raise bad_field(name, f"must be a whole number of at least 1, not {shown(value)}")
            raise UnsupportedError(
                f"`{name}` is {shown(value)}, but this model {reason}; leave the field out",
                param=name,
            )
