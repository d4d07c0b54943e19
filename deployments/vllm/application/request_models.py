"""Answers 400 where vLLM's own reading of a request stumbles over a field of another type.

Its request models look into fields before their types are checked: `structured_outputs: 5` ends in
an `AttributeError`, which vLLM answers with 500.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Discriminator, Tag

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.asgi import relative_path
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_schema import RequestModel, Wanted, bad_field, read_request


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

_KINDS = (AttributeError, TypeError, KeyError, IndexError, OverflowError)
_READERS = (("/vllm/entrypoints/", "protocol.py"), ("/vllm/renderers/", "chat_utils.py"))
"""Folders and files of vLLM's request models, and of its reading of messages."""


def check_kinds(path: str, body: Mapping[str, Any]) -> None:
    """Checks the types of such fields.

    Raises:
        RequestError: One, or a part of a message, has another type; or a chat has null in the
            place of its messages.
    """
    read_request(Fields, body)
    if path in _CHAT_ROUTES and body.get("messages", ()) is None:
        raise bad_field("messages", "must be a list, not null")


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
