"""How an error looks in each API, by the path of the request.

OpenAI's envelope for every path but those of Anthropic's Messages API, whose error names a type by
its status (https://docs.anthropic.com/en/api/errors), and those of the Open Inference Protocol,
whose error is a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http import open_inference
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import format_event

MESSAGES = "/v1/messages"
_TYPE_WORD = re.compile(r"[a-z][a-z0-9_]*")
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Types of Anthropic's Messages API by status."""


def is_anthropic(path: str) -> bool:
    """Returns whether a path, relative to the application, belongs to the Messages API."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def error_body(error: TruthGPTError, path: str) -> dict[str, Any]:
    """Returns an error as the API of a path, relative to the application, shapes it."""
    if open_inference.is_open_inference(path):
        return open_inference.error_body(error.message)
    if is_anthropic(path):
        kind = ANTHROPIC_TYPES.get(error.status)
        kind = kind or ("invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}
    return error.to_envelope()


def error_event(error: TruthGPTError, path: str) -> bytes:
    """Returns the server-sent event that ends a stream of an API which failed on the way."""
    name = "error" if is_anthropic(path) else ""
    return format_event(encode_json(error_body(error, path)), name)


def has_shape(value: Any, path: str) -> bool:
    """Returns whether a decoded body is an error as the API of a path shapes it."""
    error = value.get("error") if isinstance(value, Mapping) else None
    if open_inference.is_open_inference(path):
        return isinstance(error, str)
    if not isinstance(error, Mapping) or not isinstance(error.get("message"), str):
        return False
    if not is_type_word(error.get("type")):
        return False
    if is_anthropic(path):
        return bool(value.get("type") == "error")
    return all(key in error and isinstance(error[key], str | None) for key in ("param", "code"))


def is_type_word(value: Any) -> bool:
    """Returns whether a value is an error type as OpenAI and Anthropic write them."""
    return isinstance(value, str) and _TYPE_WORD.fullmatch(value) is not None
