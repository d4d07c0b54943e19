"""Turns errors that are not in OpenAI's envelope into ones that are; knows no sockets.

Applications answer with plain text (Ray Serve's own errors), with a proxy's page, or with FastAPI's
`{"detail": ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import (
    MethodError,
    PassedError,
    RouteNotFoundError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
)

MAX_ERROR_BYTES = 65536
"""A longer answer is no error message: it passes as it is."""
_MAX_MESSAGE = 2000
_PROXY_ERROR_PAGE = b"Internal Server Error"
"""Body of the page by which Serve's proxy replaces its own 502, 503 and 504 (status 500)."""
_NO_ROUTE = {404: "Not Found", 405: "Method Not Allowed"}
"""What FastAPI and Starlette say, by status, of a path or a method that they do not have."""


def may_translate(status: int, content_type: bytes) -> bool:
    """Whether an answer may be an error outside the envelope, so that its body must be read."""
    if status < 400:
        return False
    return content_type.startswith(b"application/json") or not content_type.startswith(
        (b"application/", b"text/event-stream")
    )


def translate_error(
    status: int, content_type: bytes, body: bytes, *, request: str, model: str, running: bool
) -> TruthGPTError | None:
    """Returns the error that an answer means, or None when it is to pass as it is.

    Args:
        status: The answer's status, 400 or above.
        content_type: Its type.
        body: Its whole body.
        request: Method and path that the client asked for, for messages.
        model: The model name that the client asked for.
        running: Whether the model has a running replica.
    """
    if content_type.startswith(b"application/json"):
        return _of_json(status, body, request, model)
    if status == 500 and body == _PROXY_ERROR_PAGE:
        if running:
            return UpstreamError(f"A replica of the model {model!r} failed before it answered")
        return UnavailableError(f"The model {model!r} has no running replica", retry_after_s=5)
    return _passed(status, body)


def _of_json(status: int, body: bytes, request: str, model: str) -> TruthGPTError | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _passed(status, body)
    if isinstance(value, dict) and "error" in value:
        return None
    detail = value.get("detail", value.get("message")) if isinstance(value, dict) else None
    if status in _NO_ROUTE and detail == _NO_ROUTE[status]:
        kind = RouteNotFoundError if status == RouteNotFoundError.status else MethodError
        return kind(f"The model {model!r} has no {request}")
    if isinstance(detail, str) and detail:
        return PassedError(status, detail[:_MAX_MESSAGE])
    if isinstance(detail, list) and detail and all(isinstance(item, dict) for item in detail):
        places = [_place(item) for item in detail]
        parts = [f"{place}: {item.get('msg')}" for place, item in zip(places, detail, strict=True)]
        return PassedError(status, "; ".join(parts)[:_MAX_MESSAGE], param=places[0])
    return _passed(status, body)


def _place(item: Mapping[str, Any]) -> str:
    """Returns the field of one of pydantic's errors, such as `messages.0.role`."""
    place = item.get("loc")
    parts = list(place) if isinstance(place, list) else []
    return ".".join(str(part) for part in parts[parts[:1] == ["body"] :]) or "body"


def _passed(status: int, body: bytes) -> PassedError:
    message = body.decode(errors="replace").strip() or f"the model answered with status {status}"
    return PassedError(status, message[:_MAX_MESSAGE])
