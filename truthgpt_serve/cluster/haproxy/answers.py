"""The answers that HAProxy gives itself, and those of Ray that it passes, in the form of the API.

Works on the lines of the configuration that Ray Serve writes. Ray has HAProxy answer with HTML or
plain text, and answers itself with plain text where a request comes to a model without the router:
a client that reads `error.message` finds none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from truthgpt_serve.cluster.haproxy.apis import is_of
from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, DEFAULT_BACKEND, insert, section
from truthgpt_serve.cluster.haproxy.limits import HEAD_TIMEOUT_S
from truthgpt_serve.http.envelope import ANTHROPIC_TYPES
from truthgpt_serve.http.retriable import READABLE, proxy_page
from truthgpt_serve.queue_full import ALL_FULL, RETRY_AFTER_S

_REQUEST, _SERVER = "invalid_request_error", "server_error"
_PAGES = {
    400: ("Bad Request", "The request is malformed, or its head is too large", _REQUEST, None),
    403: ("Forbidden", "The request is refused", _REQUEST, "forbidden"),
    404: ("Not Found", "There is no such route", _REQUEST, "not_found"),
    405: ("Method Not Allowed", "The path has no such method", _REQUEST, "method_not_allowed"),
    408: (
        "Request Timeout",
        f"The request did not arrive in time; a head must be there within {HEAD_TIMEOUT_S} s, and "
        "a body may not stop on its way",
        _REQUEST,
        "request_timeout",
    ),
    410: ("Gone", "What was asked for is gone", _REQUEST, "gone"),
    413: ("Content Too Large", "The request is too large", _REQUEST, "request_too_large"),
    425: ("Too Early", "The request came too early", _REQUEST, None),
    429: (
        "Too Many Requests",
        ALL_FULL.format(RETRY_AFTER_S),
        "rate_limit_error",
        "overloaded",
    ),
    500: ("Internal Server Error", "The service failed", _SERVER, None),
    501: ("Not Implemented", "The request asks for what HTTP servers need not have", _SERVER, None),
    502: (
        "Bad Gateway",
        "A replica of the model failed before it answered",
        _SERVER,
        "upstream_error",
    ),
    504: ("Gateway Timeout", "The model did not answer in time", "timeout_error", "timeout"),
}
"""Reason, message, type and code by status; 503 is `retriable.proxy_page`."""
_TEXTS = {
    400: (_REQUEST, None),
    404: (_REQUEST, "not_found"),
    405: (_REQUEST, "method_not_allowed"),
    408: (_REQUEST, "request_timeout"),
    413: (_REQUEST, "request_too_large"),
    429: ("rate_limit_error", "overloaded"),
    500: (_SERVER, None),
    502: (_SERVER, "upstream_error"),
    503: ("service_unavailable", "model_unavailable"),
    504: ("timeout_error", "timeout"),
}
"""Type and code by status, for the errors in plain text that are put into the envelope."""
_WITH_RETRY_AFTER = (429, 503)
_ERROR_FILE = re.compile(r"^\s*errorfile \d+ ")
_NOT_FOUND = re.compile(r"^\s*http-request return status 404 ")
_NO_PATH = "http-request return status 404 default-errorfiles if !{ path_beg / }"
"""For `*`, which no backend takes: it would be answered as if a model were away."""
_MESSAGE = "%[var(txn.message)]"


def pages() -> dict[int, bytes]:
    """Returns HAProxy's own answers, head and body, by status."""
    own = {status: _page(status, *parts) for status, parts in _PAGES.items()}
    return {**own, 503: proxy_page()}


def _page(status: int, reason: str, message: str, kind: str, code: str | None) -> bytes:
    error = {"message": message, "type": kind, "param": None, "code": code}
    body = json.dumps({"error": error})
    lines = [
        f"HTTP/1.1 {status} {reason}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "cache-control: no-cache",
        *(f"{name}: {value}" for name, value in READABLE),
        *([f"retry-after: {RETRY_AFTER_S}"] if status in _WITH_RETRY_AFTER else []),
    ]
    return "\r\n".join([*lines, "", body]).encode()


def page_path(folder: Path, status: int) -> Path:
    """Returns the file of a page."""
    return folder / f"{status}.page"


def answer(lines: list[str], folder: Path) -> None:
    """Replaces HAProxy's pages, and puts errors in plain text into the form of their API.

    Args:
        lines: The configuration, which is changed.
        folder: Where the files of the pages are.

    Raises:
        UnknownConfigurationError: The configuration is not what Ray 2.60 writes.
    """
    start, end = section(lines, "defaults")
    lines[start:end] = [line for line in lines[start:end] if not _ERROR_FILE.match(line)]
    insert(
        lines,
        "defaults",
        *(f"errorfile {status} {page_path(folder, status)}" for status in sorted(pages())),
    )
    # A HAProxy that has just started knows no routes yet, and a client takes 404 as final.
    start, end = section(lines, DEFAULT_BACKEND)
    for at in range(start, end):
        if _NOT_FOUND.match(lines[at]):
            lines[at] = "    http-request return status 503 default-errorfiles"
    insert(lines, CLIENTS, _NO_PATH, *_envelope_rules())


def _envelope_rules() -> list[str]:
    """Returns the rules for errors in plain text, Ray's and its HTTP server's, and for their id."""
    return [
        "http-request set-var(txn.request_id) req.hdr(x-request-id) "
        "if { req.hdr(x-request-id) -m found }",
        "http-after-response set-header x-request-id %[var(txn.request_id)] "
        "if { var(txn.request_id) -m found } !{ res.hdr(x-request-id) -m found }",
        "http-response allow if { status lt 400 }",
        "http-response allow if !{ res.hdr(content-type) -m beg text/plain }",
        "http-response wait-for-body time 1s",
        "http-response set-var(txn.message) res.body,json(utf8s)",
        "http-response set-var(txn.retry) res.hdr(retry-after)",
        "http-response set-var(txn.request_id) res.hdr(x-request-id) "
        "if { res.hdr(x-request-id) -m found }",
        *(rule for status in _TEXTS for rule in _envelope_rules_of(status)),
    ]


def _envelope_rules_of(status: int) -> list[str]:
    kind, code = _TEXTS[status]
    openai = {"message": _MESSAGE, "type": kind, "param": None, "code": code}
    other = _REQUEST if status < 500 else "api_error"
    anthropic = {"type": ANTHROPIC_TYPES.get(status, other), "message": _MESSAGE}
    forms = {
        f" {is_of('messages')}": {"type": "error", "error": anthropic},
        f" {is_of('v2')}": {"error": _MESSAGE},
        "": {"error": openai},
    }
    readable = "".join(f" hdr {name} {value}" for name, value in READABLE)
    later = {" { var(txn.retry) -m found }": " hdr retry-after %[var(txn.retry)]", "": ""}
    return [
        f"http-response return status {status} content-type application/json{readable}{header} "
        f"lf-string '{json.dumps(form)}' if {{ status {status} }}{api}{retry}"
        for api, form in forms.items()
        for retry, header in later.items()
        if not retry or status in _WITH_RETRY_AFTER
    ]
