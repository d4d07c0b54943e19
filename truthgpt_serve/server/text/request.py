"""OpenAI's chat and completion requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field

from truthgpt_serve.request_fields import SamplingFields, Stops
from truthgpt_serve.request_schema import (
    WHOLE,
    Count,
    FullText,
    RequestModel,
    Via,
    bad_field,
    read_request,
    unsupported,
    unsupported_unless,
    wanted,
)
from truthgpt_serve.server.text.messages import ChatMessage, Message, check_number, read_messages


def _is_one(value: Any) -> bool:
    return bool(value == 1)


def _is_empty(value: Any) -> bool:
    return not value


def _unless_empty(reason: str) -> Any:
    return unsupported_unless(_is_empty, reason)


def _prompt(value: Any) -> str:
    if isinstance(value, list) and value:
        if len(value) > 1 or not isinstance(value[0], str):
            raise unsupported("takes neither several prompts nor token ids")
        value = value[0]
    if not isinstance(value, str):
        raise wanted("a string")
    return value


OneAnswer = Annotated[
    int, Field(ge=1), unsupported_unless(_is_one, "gives one answer for each request"), WHOLE
]


class StreamOptions(RequestModel):
    """What a stream brings beside the text."""

    include_usage: bool | None = None


class TextRequest(SamplingFields):
    """What chats and completions have in common."""

    model: FullText
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    stop: Stops = Field(default_factory=list)
    n: OneAnswer | None = None
    logit_bias: Annotated[Any, _unless_empty("has no logit bias")] = None

    @property
    def max_new_tokens(self) -> int | None:
        """The limit that the client gave, or None."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(TextRequest):
    """A body of `POST /v1/chat/completions`."""

    prompt: ClassVar[str] = ""
    messages: Annotated[
        list[ChatMessage],
        Via(Annotated[list[Message], Field(min_length=1, fail_fast=True)], read_messages),
        BeforeValidator(check_number),
    ]
    """The messages as chat templates take them."""

    logprobs: Annotated[Any, _unless_empty("has no log probabilities")] = None
    top_logprobs: Annotated[Any, _unless_empty("has no log probabilities")] = None
    tools: Annotated[Any, _unless_empty("has no tool calls")] = None
    functions: Annotated[Any, _unless_empty("has no function calls")] = None
    response_format: Annotated[
        Any,
        unsupported_unless(lambda v: v in (None, {"type": "text"}), "answers in plain text only"),
    ] = None
    modalities: Annotated[
        Any, unsupported_unless(lambda v: v in (None, ["text"]), "answers in text only")
    ] = None
    audio: Annotated[Any, _unless_empty("answers in text only")] = None


class CompletionRequest(TextRequest):
    """A body of `POST /v1/completions`."""

    messages: ClassVar[None] = None
    prompt: Annotated[str, Via(Any, _prompt)]
    best_of: OneAnswer | None = None
    logprobs: Annotated[
        Any, unsupported_unless(lambda v: v is None or v is False, "has no log probabilities")
    ] = None
    echo: Annotated[Any, _unless_empty("does not repeat the prompt")] = None
    suffix: Annotated[Any, _unless_empty("does not insert text before a suffix")] = None


TextT = TypeVar("TextT", bound=TextRequest)


def parse_text(model: type[TextT], body: Mapping[str, Any]) -> TextT:
    """Checks a body of one of the two routes.

    Raises:
        RequestError: A field is missing or wrong; `param` names it.
        UnsupportedError: A field asks for what the generic application does not have.
    """
    request = read_request(model, body)
    if request.stream_options is not None and not request.stream:
        raise bad_field("stream_options", "is only allowed when `stream` is true")
    return request
