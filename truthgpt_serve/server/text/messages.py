"""The messages of a chat request.

What a message says reaches the chat template or is refused; `IGNORED` lists the few fields that say
nothing to a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

import msgspec
from pydantic import ConfigDict, Discriminator, Field, Tag

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.json_decoding import decode_json
from truthgpt_serve.request_schema import (
    FullText,
    RequestModel,
    Wanted,
    bad_field,
    unsupported_unless,
)

Role = Literal["assistant", "developer", "function", "system", "tool", "user"]
IGNORED = {
    "annotations": "where an answer's text comes from",
    "weight": "how much an answer counts in training",
    "cache_control": "what an engine may keep",
}
"""Fields that a message, or a part of its content, may have and that no model reads, and what they
are about."""
THOUGHTS = ("reasoning_content", "reasoning")
"""What the model thought before it answered: for templates that know the field, else ignored."""
MAX_TOOL_CALLS = 128
MAX_ITEMS = 16384
"""Most messages, parts of contents and tool calls of a chat: each costs the event loop 4 us."""
ChatMessage = dict[str, Any]


class _Item(RequestModel):
    """What is read in full: `_refuse_more` refuses other fields that are not null."""

    model_config = ConfigDict(extra="allow")


class Part(_Item):
    """A part of a message's content."""

    type: Annotated[
        Any, unsupported_unless(lambda v: v in ("text", "refusal"), "takes text parts only")
    ] = Field(default=None, validate_default=True)
    text: str | None = None
    refusal: str | None = None


class Function(RequestModel):
    """A function that the assistant called."""

    name: FullText
    arguments: Annotated[str | dict[str, Any], Wanted("a JSON text or an object")] | None = None


class ToolCall(_Item):
    """A call of the assistant's."""

    id: str | None = None
    type: Annotated[
        Any, unsupported_unless(lambda v: v == "function", "takes calls of functions only")
    ] = "function"
    function: Function
    index: Any = None


def _content_kind(value: Any) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


Content = Annotated[
    Annotated[str, Wanted("a string or a list of parts"), Tag("<text>")]
    | Annotated[list[Part], Field(fail_fast=True), Tag("<parts>")],
    Discriminator(_content_kind),
]


class Message(_Item):
    """A message as a client sends it."""

    role: Role
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: str | None = None
    function_call: Function | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


_USUAL = {"role", "content"}
_ROLES = {role: "tool" if role == "function" else role for role in get_args(Role)}
_OF_ASSISTANT = ("refusal", "tool_calls", "function_call", *THOUGHTS)


def check_number(messages: Any) -> Any:
    """Refuses a chat of more than `MAX_ITEMS`, before any of them is read."""
    if isinstance(messages, list):
        lists = (
            value
            for message in messages
            if isinstance(message, dict)
            for value in (message.get("content"), message.get("tool_calls"))
            if isinstance(value, list)
        )
        if len(messages) + sum(map(len, lists)) > MAX_ITEMS:
            what = "messages, content parts and tool calls in all"
            raise bad_field("messages", f"has more than {MAX_ITEMS} {what}")
    return messages


def check_end(messages: list[ChatMessage], begins: bool | None, *, goes_on: bool) -> None:
    """Checks the fields that say how the prompt of a chat ends.

    Args:
        messages: The chat.
        begins: `add_generation_prompt`.
        goes_on: `continue_final_message`.

    Raises:
        RequestError: They contradict each other or the messages.
        UnsupportedError: The prompt is to end without the beginning of an answer.
    """
    if not goes_on:
        if begins is False:
            message = (
                "`add_generation_prompt` is false: this model ends a chat where its answer begins"
            )
            raise UnsupportedError(message, param="add_generation_prompt")
        return
    if begins:
        what = "cannot be true where `add_generation_prompt` is"
        raise bad_field("continue_final_message", what)
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last:
        what = "needs a last message that is the assistant's, without tool calls"
        raise bad_field("continue_final_message", what)


def read_messages(messages: list[Message]) -> list[ChatMessage]:
    """Returns messages as chat templates take them.

    The content is one text. Arguments of tool calls are as the client wrote them. The old
    `function_call` becomes a tool call, and the role `function` becomes `tool`.

    Raises:
        RequestError: A message has a field that its role does not have.
        UnsupportedError: A message has what a text model does not take.
    """
    return [
        {"role": _ROLES[message.role], "content": message.content}
        if message.model_fields_set == _USUAL and type(message.content) is str
        else _read(message, f"messages[{index}]")
        for index, message in enumerate(messages)
    ]


def _read(given: Message, place: str) -> ChatMessage:
    role = _ROLES[given.role]
    message: ChatMessage = {"role": role, "content": _content(given, place)}
    _refuse_more(given, place)
    of_others = {"tool_call_id": "tool", **dict.fromkeys(_OF_ASSISTANT, "assistant")}
    for name, owner in of_others.items():
        if role != owner and getattr(given, name) is not None:
            raise bad_field(f"{place}.{name}", f"belongs to messages with the role {owner}")
    for name in ("name", "tool_call_id", *THOUGHTS):
        if (value := getattr(given, name)) is not None:
            message[name] = value
    calls = []
    for index, call in enumerate(given.tool_calls or ()):
        _refuse_more(call, f"{place}.tool_calls[{index}]")
        named = {} if call.id is None else {"id": call.id}
        calls.append({"type": "function", **named, "function": _function(call.function)})
    if given.function_call is not None:
        calls.append({"type": "function", "function": _function(given.function_call)})
    if calls:
        message["tool_calls"] = calls
    return message


def _content(given: Message, place: str) -> str:
    content, refusal = given.content, given.refusal
    if content is None and given.role != "assistant":
        raise bad_field(f"{place}.content", "must be a string or a list of parts, not null")
    if isinstance(content, list):
        parts = [_text(part, f"{place}.content[{at}]") for at, part in enumerate(content)]
        content = "".join(parts)
    return f"{content}\n{refusal}" if content and refusal else content or refusal or ""


def _text(part: Part, place: str) -> str:
    _refuse_more(part, place)
    text, other = ("text", "refusal") if part.type == "text" else ("refusal", "text")
    if getattr(part, other) is not None:
        raise _unknown(f"{place}.{other}")
    found: str | None = getattr(part, text)
    if found is None:
        raise bad_field(f"{place}.{text}", "is required")
    return found


def _function(function: Function) -> dict[str, Any]:
    arguments = "" if function.arguments is None else function.arguments
    return {"name": function.name, "arguments": arguments}


def _refuse_more(item: _Item, place: str) -> None:
    for name, value in (item.model_extra or {}).items():
        if value is not None and name not in IGNORED:
            raise _unknown(f"{place}.{name[:80]}")


def _unknown(place: str) -> UnsupportedError:
    return UnsupportedError(f"`{place}` is not a field that this model takes", param=place)


def parse_arguments(message: ChatMessage) -> ChatMessage:
    """Returns a message whose tool calls have their arguments as objects, as most templates want.

    A text that is no JSON object stays a text: it is what the model once wrote.
    """
    return _with_arguments(message, _as_object)


def dump_arguments(message: ChatMessage) -> ChatMessage:
    """Returns a message whose tool calls have their arguments as JSON texts."""
    return _with_arguments(message, _as_text)


def _with_arguments(message: ChatMessage, change: Callable[[Any], Any]) -> ChatMessage:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = {**call["function"], "arguments": change(call["function"]["arguments"])}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls}


def _as_object(arguments: Any) -> Any:
    if isinstance(arguments, dict):
        return arguments
    if not arguments.strip():
        return {}
    try:
        value = decode_json(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments or "{}"
    return msgspec.json.encode(arguments).decode()
