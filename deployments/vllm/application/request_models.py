"""Answers 400 where vLLM's own reading of a request stumbles over a field of another type.

Its request models look into fields before their types are checked: `structured_outputs: 5` ends in
an `AttributeError`, which vLLM answers with 500.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Discriminator, Tag, ValidationError
from pydantic_core import ErrorDetails

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.asgi import relative_path
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_schema import RequestModel, Wanted, bad_field, read_request
from truthgpt_serve.wording import words_of


def _is(kind: type, tag: str) -> Discriminator:
    return Discriminator(lambda value: tag if isinstance(value, kind) else "<other>")


class _Source(RequestModel):
    """Where an image, a video or a recording comes from."""

    url: str | None = None
    data: str | None = None
    format: str | None = None


_SourceOrText = Annotated[
    Annotated[_Source, Tag("<object>")]
    | Annotated[str, Wanted("an object or a string"), Tag("<other>")],
    _is(dict, "<object>"),
]


class _Part(RequestModel):
    """A part of a message's content; null is what the part's `uuid` names."""

    image_url: _SourceOrText | None = None
    video_url: _SourceOrText | None = None
    audio_url: _SourceOrText | None = None
    input_audio: _Source | None = None


_PartOrOther = Annotated[
    Annotated[_Part, Tag("<object>")] | Annotated[Any, Tag("<other>")], _is(dict, "<object>")
]


class _Message(RequestModel):
    content: Annotated[
        Annotated[list[_PartOrOther], Tag("<parts>")] | Annotated[Any, Tag("<other>")],
        _is(list, "<parts>"),
    ] = None


_MessageOrOther = Annotated[
    Annotated[_Message, Tag("<object>")] | Annotated[Any, Tag("<other>")], _is(dict, "<object>")
]
_Conversation = Annotated[
    Annotated[list[_MessageOrOther], Tag("<list>")] | Annotated[_MessageOrOther, Tag("<message>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<message>"),
]


class Fields(RequestModel):
    """The fields into which vLLM's models look before their types are checked.

    So do they into the parts of messages, which they leave unread where the message is a tool's.
    Null is left to vLLM's own model, and so are messages and parts of another type.
    """

    messages: list[_Conversation] | None = None
    tools: list[Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream_options: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_CHAT_ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")
_OPENAI_CHATS = ("/v1/chat/completions", "/v1/chat/completions/batch")
_LISTS_ROUTES = (*_OPENAI_CHATS, "/tokenize")
_FORMAT_ROUTES = (*_OPENAI_CHATS, "/v1/completions")
_OUTPUTS_ROUTES = (*_FORMAT_ROUTES, "/v1/responses")
_URLS = ("image_url", "video_url", "audio_url")
_CONSTRAINTS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")

_KINDS = (AttributeError, TypeError, KeyError, IndexError, OverflowError)
_READERS = (("/vllm/entrypoints/", "protocol.py"), ("/vllm/renderers/", "chat_utils.py"))
"""Folders and files of vLLM's request models, and of its reading of messages."""


def check_kinds(path: str, body: Mapping[str, Any]) -> None:
    """Checks the types of such fields, and what vLLM's errors would not name.

    Raises:
        RequestError: One, or a part or a call of a message, has another type; a chat has null in
            the place of its messages; or what should bind the answer is missing.
    """
    read_request(Fields, body)
    if path in _CHAT_ROUTES and body.get("messages", ()) is None:
        raise bad_field("messages", "must be a list, not null")
    if path in _LISTS_ROUTES:
        messages = _messages(body.get("messages") or ())
        if odd := [(place, message) for place, message in messages if _is_odd(message)]:
            _check_lists(odd)
    if path in _OUTPUTS_ROUTES:
        _check_constraint(path, body)


def _check_constraint(path: str, body: Mapping[str, Any]) -> None:
    outputs = body.get("structured_outputs") or {}
    kinds = {kind for kind in _CONSTRAINTS if outputs.get(kind) is not None}
    if body.get("structured_outputs") is not None and not kinds:
        raise bad_field("structured_outputs", f"must have one of {', '.join(_CONSTRAINTS)}")
    if len(kinds) > 1:
        found = " and ".join(kind for kind in _CONSTRAINTS if kind in kinds)
        raise bad_field("structured_outputs", f"must have one kind of constraint, not {found}")
    given = body.get("response_format") or {}
    if path not in _FORMAT_ROUTES or given.get("type") != "json_schema":
        return
    param = "response_format.json_schema"
    schema = given.get("json_schema")
    if schema is None:
        raise bad_field(param, "is required where `response_format.type` is json_schema")
    is_unused = kinds - {"json"} or body.get("tools") or body.get("use_beam_search")
    if isinstance(schema, dict) and schema.get("schema") is None and not is_unused:
        raise bad_field(f"{param}.schema", "is required")


def _messages(items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yields each message of a conversation, or of several, and its place."""
    for index, item in enumerate(items):
        place = f"messages[{index}]"
        if isinstance(item, list):
            yield from ((f"{place}[{inner}]", message) for inner, message in enumerate(item))
        else:
            yield place, item


def _is_odd(message: Any) -> bool:
    """Whether vLLM may refuse a part of a message's content, or one of its calls."""
    if not isinstance(message, dict):
        return False
    parts = message.get("content")
    return (isinstance(parts, list) and not all(map(_is_part, parts))) or _has_odd_call(message)


def _has_odd_call(message: Mapping[str, Any]) -> bool:
    calls = message.get("tool_calls")
    return (
        message.get("role") == "assistant"
        and isinstance(calls, list)
        and not all(map(_is_call, calls))
    )


def _is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return _has_texts(part, "text")
    return kind in _URLS and _has_texts(part.get(kind), "url") and len(part[kind]) == 1


def _is_call(call: Any) -> bool:
    if not _has_texts(call, "id"):
        return False
    if call.get("type") == "custom":
        return _has_texts(call.get("custom"), "name", "input")
    return call.get("type") == "function" and _has_texts(call.get("function"), "name", "arguments")


def _has_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def _check_lists(messages: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Checks the lists in messages that vLLM's model reads last, and names by their items alone.

    What it takes there depends on a message's other fields, so the model itself is asked.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    try:
        body = {"messages": [message for _, message in messages]}
        read: list[Any] = ChatCompletionRequest.model_validate(body).messages
    except ValidationError as error:
        place = next((place for place, message in messages if _has_odd_call(message)), None)
        if place and isinstance(next(iter(error.errors()[0]["loc"]), None), int):
            raise _fault(f"{place}.tool_calls", error) from None
        return  # it names the place
    except _KINDS:
        return
    for (place, _), message in zip(messages, read, strict=True):
        parts = message.get("content") if isinstance(message, dict) else None
        try:
            if isinstance(parts, Iterator):
                list(parts)
        except ValidationError as error:
            raise _fault(f"{place}.content", error) from None


def _fault(place: str, error: ValidationError) -> RequestError:
    detail = _nearest(error.errors(include_url=False))
    return bad_field(place + _shown(detail["loc"]), words_of(detail))


def _nearest(details: Sequence[ErrorDetails]) -> ErrorDetails:
    """Returns a fault of the kind of part or call that has fewest; what kind it is comes first."""
    num_faults = Counter(detail["loc"][1:2] for detail in details)
    return min(details, key=lambda x: (num_faults[x["loc"][1:2]], x["loc"][-1] != "type"))


def _shown(location: tuple[int | str, ...]) -> str:
    """Returns a place without the names of pydantic's classes in it."""
    return "".join(
        f"[{key}]" if isinstance(key, int) else f".{key}"
        for key in location
        if isinstance(key, int) or not key[:1].isupper()
    )


def refuse_misread_fields(app: FastAPI) -> None:
    """Has an application answer 400 to what its request models cannot read.

    Args:
        app: vLLM's application; it must not have served a request yet.
    """

    async def answer(request: Request, raised: Exception) -> Response:
        if not _is_of_request_models(raised):
            raise raised
        path = relative_path(request.scope)
        error = RequestError(
            f"a field of the request has a value of another type than {path} takes: compare it "
            "with the API's reference"
        )
        body = encode_json(error_body(error, path))
        return Response(body, error.status, media_type="application/json")

    for kind in _KINDS:
        app.add_exception_handler(kind, answer)
    app.middleware_stack = None  # the first request builds it again


def _is_of_request_models(error: BaseException) -> bool:
    """Whether an exception came up in code that reads requests, and in nothing that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    name = frames[-1].filename if frames else ""
    return any(folder in name and name.endswith(file) for folder, file in _READERS)
