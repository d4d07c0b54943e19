"""OpenAI's chat and completion requests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.request_fields import SamplingFields, Stops
from truthgpt_serve.request_schema import (
    Count,
    FullText,
    NonNegative,
    RequestModel,
    Via,
    Wanted,
    bad_field,
    read_request,
    unsupported_unless,
    wanted,
)
from truthgpt_serve.server.template_options import (
    Effort,
    TemplateVariables,
    template_options,
)
from truthgpt_serve.server.text.messages import (
    ChatMessage,
    Message,
    check_end,
    check_number,
    read_messages,
)
from truthgpt_serve.server.text.structured import (
    ResponseFormat,
    StructuredOutputs,
    find_grammar,
)
from truthgpt_serve.server.text.tools.request import ToolChoice, Tools, ToolUse, read_tools


def _is_empty(value: Any) -> bool:
    return not value


def _unless_empty(reason: str) -> Any:
    return unsupported_unless(_is_empty, reason)


Prompt = str | list[int]
"""A prompt as text or as token ids."""
MAX_TOKEN_ID = 2**31 - 1
MAX_LOGIT_BIAS = 100
_PROMPTS = "a text, token ids, or a list of either"
_IDS = f"a list of token ids, whole numbers from 0 to {MAX_TOKEN_ID}"


def _prompts(value: Any) -> list[Prompt]:
    """Returns the prompts of a request, checked in plain Python: token ids come by thousands."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wanted(_PROMPTS)
    if type(value[0]) is int:
        return [_token_ids(value)]
    found: list[Prompt] = []
    for item in value:
        found.append(item if isinstance(item, str) else _token_ids(item))
    return found


def _token_ids(value: Any) -> list[int]:
    if not value or not _are_token_ids(value):
        raise wanted(_PROMPTS)
    found: list[int] = value
    return found


def _are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(token) is int and 0 <= token <= MAX_TOKEN_ID for token in value
    )


def _only_token_ids(value: Any) -> list[int]:
    if not _are_token_ids(value):
        raise wanted(_IDS)
    found: list[int] = value
    return found


TokenIds = Annotated[list[int], Via(Any, _only_token_ids)]


def _logit_bias(value: Any) -> dict[int, float]:
    wish = f"an object of token ids with numbers from -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS}"
    found = {}
    for token, bias in (value or {}).items():
        is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
        if not (token.isascii() and token.isdigit() and len(token) < 10 and is_number):
            raise wanted(wish)
        if not abs(bias) <= MAX_LOGIT_BIAS:
            raise wanted(wish)
        found[int(token)] = float(bias)
    return found


LogitBias = Annotated[
    dict[int, float],
    Via(
        Annotated[dict[str, Any] | None, Wanted("an object of token ids and numbers")], _logit_bias
    ),
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
    n: Count | None = None
    logit_bias: LogitBias = Field(default_factory=dict)
    stop_token_ids: Annotated[
        list[int], Via(Any, lambda v: [] if v is None else _only_token_ids(v))
    ] = Field(default_factory=list)
    allowed_token_ids: Annotated[Any, _unless_empty("chooses among all tokens")] = None
    bad_words: Annotated[Any, _unless_empty("has no words that it leaves out")] = None
    include_stop_str_in_output: Annotated[Any, _unless_empty("cuts what ends an answer")] = None
    use_beam_search: Annotated[Any, _unless_empty("has no beam search")] = None
    return_token_ids: Annotated[Any, _unless_empty("returns no token ids")] = None
    truncate_prompt_tokens: Annotated[Any, _unless_empty("cuts no prompts")] = None
    prompt_logprobs: Annotated[
        Any,
        unsupported_unless(lambda v: v is None, "gives those of prompts by `echo` and `logprobs`"),
    ] = None
    skip_special_tokens: Annotated[
        Any, unsupported_unless(lambda v: v is not False, "leaves special tokens out of answers")
    ] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What binds the answer, or None; see `find_grammar`."""
        return find_grammar(self.response_format, self.structured_outputs)

    @property
    def max_new_tokens(self) -> int | None:
        """The limit that the client gave, or None."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(TextRequest):
    """A body of `POST /v1/chat/completions`."""

    prompt: ClassVar[list[Prompt]] = [""]
    echo: ClassVar[bool] = False
    suffix: ClassVar[str | None] = None
    messages: Annotated[
        list[ChatMessage],
        Via(Annotated[list[Message], Field(min_length=1, fail_fast=True)], read_messages),
        BeforeValidator(check_number),
    ]
    """The messages as chat templates take them."""

    logprobs: bool | None = None
    top_logprobs: NonNegative | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, _unless_empty("has no function calls")] = None
    modalities: Annotated[
        Any, unsupported_unless(lambda v: v in (None, ["text"]), "answers in text only")
    ] = None
    audio: Annotated[Any, _unless_empty("answers in text only")] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Whether the answer goes on with the last message, as at vLLM's."""

    thinking_token_budget: NonNegative | None = None
    """The most tokens of thoughts, as at vLLM's."""

    chat_template_kwargs: TemplateVariables = None
    """Variables for the chat template, as at vLLM's."""

    reasoning_effort: Effort | None = None

    @property
    def template_options(self) -> dict[str, Any]:
        """What the chat template is told beside the chat."""
        return template_options(self.chat_template_kwargs, self.reasoning_effort)

    @property
    def goes_on(self) -> bool:
        """Whether the answer goes on with the last message."""
        return bool(self.continue_final_message)

    @cached_property
    def tool_use(self) -> ToolUse | None:
        """What it says of tools, or None where the model is to call none.

        Raises:
            RequestError: `tool_choice` names no function of the request.
        """
        return read_tools(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each token, or None."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(TextRequest):
    """A body of `POST /v1/completions`."""

    messages: ClassVar[None] = None
    tool_use: ClassVar[None] = None
    goes_on: ClassVar[bool] = False
    thinking_token_budget: ClassVar[None] = None
    template_options: ClassVar[dict[str, Any]] = {}
    prompt: Annotated[list[Prompt], Via(Any, _prompts)]
    max_tokens: NonNegative | None = None
    best_of: Count | None = None
    logprobs: Annotated[
        NonNegative | None, BeforeValidator(lambda v: None if v is False else v)
    ] = None
    echo: bool | None = None
    suffix: str | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the likeliest tokens are wanted beside each token, or None."""
        return self.logprobs


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
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_field("top_logprobs", "is only allowed when `logprobs` is true")
        _ = request.tool_use  # whose faults are found now
        check_end(request.messages, request.add_generation_prompt, goes_on=request.goes_on)
    elif isinstance(request, CompletionRequest):
        _check_completion(request)
    return request


def _check_completion(request: CompletionRequest) -> None:
    if request.max_new_tokens == 0 and not request.echo:
        raise bad_field("max_tokens", "must be at least 1 where `echo` is not true, not 0")
    if (request.best_of or 1) != (request.n or 1) and request.best_of is not None:
        message = (
            f"is {request.best_of}, but this model returns every answer it generates: leave it"
        )
        raise UnsupportedError(f"`best_of` {message} out", param="best_of")
    if request.suffix and request.echo:
        raise bad_field("suffix", "cannot be used together with `echo`")
