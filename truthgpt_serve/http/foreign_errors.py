"""Reads errors in any form, so that they can be answered in the form of the request's API.

Engines, remote servers, applications that a user wrote and Ray Serve answer with envelopes that
miss a field or have a number for a code, with FastAPI's `{"detail": ...}`, with plain text or with
a page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import (
    MethodError,
    OverloadedError,
    PassedError,
    TruthGPTError,
    UnavailableError,
    UnsupportedError,
    UpstreamError,
)
from truthgpt_serve.http.asgi import Headers, header
from truthgpt_serve.http.envelope import has_shape, is_type_word
from truthgpt_serve.http.routes import find_routes, refuse
from truthgpt_serve.http.sse import read_data
from truthgpt_serve.queue_full import queue_full, read_ray_refusal

MAX_ERROR_BYTES = 65536
"""A longer answer is no error message: it passes as it is."""
_MAX_MESSAGE = 2000
_PROXY_ERROR_PAGE = b"Internal Server Error"
"""Body of the page by which Serve's proxy replaces its own 502, 503 and 504 (status 500)."""
_NOT_HERE = ("not found", "404 page not found", "file not found", "invalid url")
"""What servers say, in lower case, of a path that they do not have."""
_NO_ROUTE = ("no route", "resource not found", "unsupported method")
"""What servers say, in lower case and among other words, of a route that they do not have."""
_NO_API = " api"
"""How messages of a model without a route end: "does not support Responses API"."""
_UNSAID = "the model answered with status"
_NOT_IMPLEMENTED = 501
_CONTEXT = "maximum context length"


def may_be_foreign(status: int, headers: Headers) -> bool:
    """Returns whether an answer may be an error in a foreign form: its body must be read."""
    if status < 400 or header(headers, b"content-encoding") is not None:
        return False
    kind = (header(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    is_json = kind == b"application/json" or kind.endswith(b"+json")
    return is_json or not kind.startswith((b"application/", b"text/event-stream"))


def read_error(
    status: int, body: bytes, *, method: str, path: str, model: str
) -> TruthGPTError | None:
    """Returns the error that an answer means, or None when it has its API's form already.

    Args:
        status: The answer's status, 400 or above.
        body: Its whole body.
        method: The request's method.
        path: Its path, relative to the application.
        model: The model name, for messages.
    """
    value = decode(body)
    fields = _fields(value, status, body)
    if _is_no_route(status, fields):
        if status == 404 or find_routes(path, "model"):
            return refuse(method, path, model)
        return MethodError(f"the model {model!r} has no {method} {path[:200]}")
    if status == _NOT_IMPLEMENTED:
        return UnsupportedError(fields["message"])
    if has_shape(value, path):
        return None
    return _passed(status, fields)


def read_proxied_error(
    status: int, body: bytes, *, method: str, path: str, model: str, running: bool
) -> TruthGPTError | None:
    """Does the same for an answer that came through Serve's proxy.

    Args:
        status: As for `read_error`, like the next four.
        body: See there.
        method: See there.
        path: See there.
        model: See there.
        running: Whether the model has a running replica.
    """
    if status == 500 and body == _PROXY_ERROR_PAGE:
        if running:
            return UpstreamError(f"A replica of the model {model!r} failed before it answered")
        return UnavailableError(f"The model {model!r} has no running replica", retry_after_s=5)
    if status == OverloadedError.status and (queued := read_ray_refusal(body)) is not None:
        return queue_full(f"model {model!r}", queued)
    return read_error(status, body, method=method, path=path, model=model)


def read_passed_error(status: int, body: bytes) -> PassedError:
    """Returns the error of another server as it means it, in whatever form it came."""
    return _passed(status, _fields(decode(body), status, body))


def is_error_event(event: bytes) -> bool:
    """Returns whether a server-sent event tells of an error, in the form of any API."""
    if b'"error"' not in event:
        return False
    value = decode(next(read_data(event), b""))
    return isinstance(value, Mapping) and bool(value.get("error")) and "choices" not in value


def decode(body: bytes) -> Any:
    """Returns a body's JSON, or None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _fields(value: Any, status: int, body: bytes) -> dict[str, Any]:
    """Returns what an answer says, with `message` at least."""
    text = body.decode(errors="replace").strip()
    return find_fields(value) or {"message": text or f"{_UNSAID} {status}"}


def find_fields(value: Any) -> dict[str, Any] | None:
    """Returns what a decoded error says, with `message` at least; None where it has no message."""
    inner = value.get("error", value) if isinstance(value, Mapping) else None
    if isinstance(inner, str) and inner:
        return {"message": inner}
    if isinstance(inner, Mapping):
        if isinstance(message := inner.get("message"), str):
            return {**inner, "message": message}
        detail = inner.get("detail")
        if isinstance(detail, str):
            return {"message": detail}
        if isinstance(detail, list) and detail and all(isinstance(x, Mapping) for x in detail):
            places = [_place(item) for item in detail]
            parts = [f"{at}: {item.get('msg')}" for at, item in zip(places, detail, strict=True)]
            return {"message": "; ".join(parts), "param": places[0]}
    return None


def find_message(body: bytes) -> str | None:
    """Returns the message of an error's body in any form of JSON; None where it has none."""
    fields = find_fields(decode(body))
    return fields["message"] if fields else None


def _place(item: Mapping[str, Any]) -> str:
    """Returns the field of one of pydantic's errors, such as `messages.0.role`."""
    place = item.get("loc")
    parts = list(place) if isinstance(place, list) else []
    return ".".join(str(part) for part in parts[parts[:1] == ["body"] :]) or "body"


def _is_no_route(status: int, fields: Mapping[str, Any]) -> bool:
    message: str = fields["message"].lower().strip(" .")
    if status == 405:
        return message == "method not allowed"
    if status != 404:
        return False
    unsaid = ("invalid url (", _UNSAID)
    return message in _NOT_HERE or message.startswith(unsaid)


def says_no_route(status: int, body: bytes, path: str) -> bool:
    """Returns whether an answer of another server says that it does not have the route asked for.

    A page, a plain text or nothing comes from what stands in front of an API; the API itself says
    in JSON that something else, such as a model or an earlier response, is not there.

    Args:
        status: Its status: 404, 405 or 501.
        body: Its whole body.
        path: The path that was asked for.
    """
    value = decode(body)
    fields = find_fields(value)
    if status == 405 or not isinstance(value, Mapping) or not value:
        return True
    if fields is None:
        return False
    message: str = fields["message"].lower().rstrip(" .")
    if any(word in message for word in (*_NO_ROUTE, path.lower())):
        return True
    if status == _NOT_IMPLEMENTED:
        return message.endswith(_NO_API)
    return fields.get("code") == "unknown_url" or _is_no_route(status, fields)


def _passed(status: int, fields: Mapping[str, Any]) -> PassedError:
    message, param, code = fields["message"], fields.get("param"), fields.get("code")
    if not isinstance(code, str) or code.isdigit():
        code = None
        if _CONTEXT in message:
            code = "context_length_exceeded"
        elif status == 404 and param == "model":
            code = "model_not_found"
    given = fields.get("type")
    return PassedError(
        status,
        message[:_MAX_MESSAGE],
        param=param.removeprefix("body.") if isinstance(param, str) else None,
        code=code,
        type=given if is_type_word(given) else None,
    )
