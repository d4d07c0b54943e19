"""Answers 400 where vLLM's own reading of a request stumbles over a field of another type.

Its request models look into fields before their types are checked: `structured_outputs: 5` ends in
an `AttributeError`, which vLLM answers with 500.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.asgi import relative_path
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_model import bad_field
from truthgpt_serve.wording import shown

FIELD_KINDS: dict[str, type] = {
    "messages": list,
    "tools": list,
    "structured_outputs": dict,
    "response_format": dict,
    "stream_options": dict,
    "chat_template_kwargs": dict,
}
"""JSON types of the fields into which the request models look before their types are checked."""
PART_KINDS: dict[str, tuple[type, ...]] = {
    "image_url": (dict, str),
    "video_url": (dict, str),
    "audio_url": (dict, str),
    "input_audio": (dict,),
}
"""The same for the parts of a message's content, which the request models leave unread where the
message is a tool's. The members of such an object are texts."""
_PART_MEMBERS = ("url", "data", "format")
_CHAT_ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")

_KINDS = (AttributeError, TypeError, KeyError, IndexError, OverflowError)
_READERS = (("/vllm/entrypoints/", "protocol.py"), ("/vllm/renderers/", "chat_utils.py"))
"""Folders and files of vLLM's request models, and of its reading of messages."""


def check_kinds(path: str, body: Mapping[str, Any]) -> None:
    """Checks the types of such fields.

    Raises:
        RequestError: One, or a part of a message, has another type; null is left to the request
            model where it may be there.
    """
    for name in FIELD_KINDS.keys() & body.keys():
        value, kind = body[name], FIELD_KINDS[name]
        is_needed = name == "messages" and path in _CHAT_ROUTES
        if not isinstance(value, kind) and (value is not None or is_needed):
            noun = "a list" if kind is list else "an object"
            raise bad_field(name, f"must be {noun}, not {shown(value)}")
    for place, part in _parts(body.get("messages"), "messages"):
        for name in PART_KINDS.keys() & part.keys():
            _check_part(part[name], f"{place}.{name}", PART_KINDS[name])


def _parts(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the parts of the contents of messages, of several conversations too."""
    for index, message in enumerate(value if isinstance(value, list) else ()):
        if isinstance(message, list):
            yield from _parts(message, f"{place}[{index}]")
        content = message.get("content") if isinstance(message, dict) else None
        for at, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict):
                yield f"{place}[{index}].content[{at}]", part


def _check_part(value: Any, place: str, kinds: tuple[type, ...]) -> None:
    if value is None:
        return  # what its `uuid` names is there already
    if not isinstance(value, kinds):
        nouns = "an object or a string" if str in kinds else "an object"
        raise bad_field(place, f"must be {nouns}, not {shown(value)}")
    members: Mapping[str, Any] = value if isinstance(value, dict) else {}
    for name in _PART_MEMBERS:
        if not isinstance(members.get(name), str | None):
            raise bad_field(f"{place}.{name}", f"must be a string, not {shown(members[name])}")


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
