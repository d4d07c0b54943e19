"""What an answer to a bad request must not be."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from tests.fuzz.client import Answer
from tests.fuzz.requests import Request

MAX_REFUSAL_S = 5.0
MAX_ANSWER_S = 60.0
"""Some changed requests are good ones, which a busy machine may take a while for."""
_PYTHON = (
    b"' object is not ",
    b"' object has no attribute",
    b"' object cannot be",
    b"NoneType",
    b"unhashable type",
    b"unexpected keyword argument",
    b"Traceback (most recent",
    b" indices must be ",
    b"not supported between instances",
)
"""What Python says of a program's error: of a request it says nothing to a client."""


def faults(request: Request, answer: Answer) -> list[str]:
    """Returns what is wrong with an answer, nothing for a good one."""
    found = []
    if answer.status >= 500:
        found.append(f"status {answer.status}: {answer.body[:200]!r}")
    limit_s = MAX_REFUSAL_S if answer.status >= 400 else MAX_ANSWER_S
    if answer.seconds > limit_s:
        found.append(f"took {answer.seconds:.1f} s")
    if answer.status == 0 and not request.broken:
        found.append(f"no answer ({answer.note or 'closed'})")
    elif answer.status and not answer.whole and not request.broken:
        found.append(f"answer not whole ({answer.note})")
    if answer.status >= 400 and answer.whole and request.method != "HEAD":
        found += _shape_faults(request, answer)
    if "text/event-stream" in answer.content_type:
        found += _event_faults(answer)
    return found


def _shape_faults(request: Request, answer: Answer) -> list[str]:
    try:
        value: Any = json.loads(answer.body)
    except (ValueError, RecursionError):
        return [f"{answer.status} is not JSON: {answer.body[:80]!r}"]
    if any(words in answer.body for words in _PYTHON):
        return [f"{answer.status} has Python's own words: {answer.body[:200]!r}"]
    path = unquote(request.path.partition("?")[0])
    if re.match("/models/[^/]", path):
        path = "/" + path.split("/", 3)[-1]
    error = value.get("error") if isinstance(value, dict) else None
    if path.startswith("/models//"):  # the API of no model: either form will do
        path = "/v2" if isinstance(error, str) else "/"
    if isinstance(error, dict) and _is_malformed(error):
        good = _is_envelope(error)  # for the proxy it has no path: it may have any API's
    elif path == "/v2" or path.startswith("/v2/"):
        good = isinstance(error, str) and bool(error)
    elif re.match(r"/v1/messages($|[/#])", path):
        good = isinstance(error, dict) and value.get("type") == "error"
    else:
        good = isinstance(error, dict) and _is_envelope(error)
    return [] if good else [f"{answer.status} has another shape: {answer.body[:160]!r}"]


def _is_malformed(error: dict[str, Any]) -> bool:
    """Whether the proxy could not read the request as HTTP."""
    return error.get("message") in ("malformed request", "Invalid HTTP request received.")


def _is_envelope(error: dict[str, Any]) -> bool:
    return (
        isinstance(error.get("message"), str)
        and bool(error["message"])
        and isinstance(error.get("type"), str)
        and isinstance(error.get("code"), str | None)
        and isinstance(error.get("param"), str | None)
    )


def _event_faults(answer: Answer) -> list[str]:
    if b"Internal Server Error" in answer.body or b'"code": 500' in answer.body:
        return [f"a stream ends with an internal error: {answer.body[-200:]!r}"]
    return []
