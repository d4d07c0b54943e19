"""Answers 400 where vLLM's own reading of a request stumbles over a field of another type.

Its request models look into fields before their types are checked: `structured_outputs: 5` ends in
an `AttributeError`, which vLLM answers with 500.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response

from truthgpt_serve.api_errors import error_body
from truthgpt_serve.asgi import relative_path
from truthgpt_serve.errors import RequestError
from truthgpt_serve.protocol import bad_field, encode_json, shown

FIELD_KINDS: dict[str, type] = {
    "messages": list,
    "tools": list,
    "structured_outputs": dict,
    "response_format": dict,
    "stream_options": dict,
    "chat_template_kwargs": dict,
}
"""JSON types of the fields into which the request models look before their types are checked."""
_CHAT_ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens")

_KINDS = (AttributeError, TypeError, KeyError, IndexError, OverflowError)
_MODELS = ("/vllm/entrypoints/", "protocol.py")


def check_kinds(path: str, body: Mapping[str, Any]) -> None:
    """Checks the types of such fields.

    Raises:
        RequestError: One has another type; null is left to the request model where it may be there.
    """
    for name in FIELD_KINDS.keys() & body.keys():
        value, kind = body[name], FIELD_KINDS[name]
        is_needed = name == "messages" and path in _CHAT_ROUTES
        if not isinstance(value, kind) and (value is not None or is_needed):
            noun = "a list" if kind is list else "an object"
            raise bad_field(name, f"must be {noun}, not {shown(value)}")


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
    """Whether an exception came up in the code of a request model, and in nothing that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    folder, file = _MODELS
    return folder in frames[-1].filename and frames[-1].filename.endswith(file)
