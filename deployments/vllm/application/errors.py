"""vLLM's errors in words and places that clients know; their form comes from the layers around.

vLLM repeats parameters as `(parameter=..., value=...)`, quotes pydantic's records as Python writes
them, has several wordings for a request that is too long, and ends streams with envelopes of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from deployments.vllm.application.early_errors import error_in, read_error
from deployments.vllm.application.pydantic_text import in_plain_words
from deployments.vllm.arguments import open_arguments
from truthgpt_serve.errors import PassedError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, relative_path
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, decode
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import is_event_stream, split_events

_MAX_REPORTED = 10
_CONTEXT = "maximum context length is"
_LENGTH = re.compile(r"(?:max_model_len\D{0,4}|maximum (?:model |context )?length\D{0,4})(\d+)")
_FLAG = re.compile(r"--([a-z][a-z0-9-]{2,60})")
_SUFFIX = re.compile(r" \(parameter=[^()]*\)$")
_PLACE = re.compile(r"[a-z_][A-Za-z0-9_]*")
_KINDS = frozenset(("str", "int", "float", "bool", "bytes", "list", "tuple", "dict", "none"))
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
"""Names of pydantic's that clients of vLLM's own server look for in messages."""


def clean_message(message: str) -> str:
    """Returns one of vLLM's messages without its own notes, and with the limit that it is about.

    LiteLLM and LangChain know a request that is too long by "maximum context length is N tokens".
    """
    message = in_plain_words(_SUFFIX.sub("", message))[0]
    message = _FLAG.sub(_as_key, message)
    found = _LENGTH.search(message)
    if found and _CONTEXT not in message:
        return f"This model's {_CONTEXT} {found[1]} tokens. {message}"
    return message


def _as_key(flag: re.Match[str]) -> str:
    """Returns the key of the YAML for one of vLLM's flags."""
    name = flag[1].replace("-", "_")
    return f"`serving.engine.{name}`" if name in open_arguments() else flag[0]


def report_validation(app: FastAPI) -> None:
    """Has vLLM's application name the wrong fields of a request in plain words.

    Args:
        app: The application; it must not have served a request yet.
    """

    async def answer(request: Request, raised: Exception) -> Response:
        if not isinstance(raised, RequestValidationError):
            raise raised
        parts = list(dict.fromkeys(map(_field_error, _of_its_form(raised.errors()))))
        message = "; ".join(
            f"`{place}`: {text}" if place else text for place, text in parts[:_MAX_REPORTED]
        )
        if len(parts) > _MAX_REPORTED:
            message += f"; and {len(parts) - _MAX_REPORTED} more"
        error = PassedError(400, message, param=next((place for place, _ in parts if place), None))
        return Response(encode_json(error.to_envelope()), 400, media_type="application/json")

    app.add_exception_handler(RequestValidationError, answer)
    # vLLM has it built already, without this handler; the first request builds it again.
    app.middleware_stack = None


def _of_its_form(items: Sequence[Any]) -> Sequence[Any]:
    """Returns the faults without the fields that only other forms of the request have.

    A route may take several forms, and pydantic reports what each of them lacks.
    """
    if not any(map(_names_form, items)):
        return items
    told = [item for item in items if not _lacks_field(item)]
    return told or items


def _names_form(item: Any) -> bool:
    """Whether the name of a form follows `body` in a fault's place, and not a field."""
    place: Sequence[Any] = item.get("loc", ()) if isinstance(item, Mapping) else ()
    return len(place) > 1 and not _PLACE.fullmatch(str(place[1]))


def _lacks_field(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("type") == "missing" and len(item["loc"]) == 3


def _field_error(item: Mapping[str, Any] | str) -> tuple[str, str]:
    """Returns the field and the fault of one of pydantic's errors, or of vLLM's own, a text."""
    if not isinstance(item, Mapping):
        return "", str(item)[:500]
    cause = item.get("ctx", {}).get("error")
    parts = [part for part in item.get("loc", ()) if part != "body"]
    place = ".".join(
        str(part)
        for part in parts
        if isinstance(part, int) or (_PLACE.fullmatch(str(part)) and part not in _KINDS)
    )
    text = clean_message(str(cause)) if cause is not None else str(item.get("msg"))
    if item.get("type") in _BOUNDS:
        text += f" ({item['type']})"
    return str(getattr(cause, "parameter", None) or place), text[:500]


class ReadableErrors:
    """vLLM's application, whose errors are cleaned.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] == "http":
            send = _Answer(relative_path(scope), send)
        await self._app(scope, receive, send)


class _Answer:
    """The way back of one request: cleans an error's body, and errors among a stream's events."""

    __slots__ = ("_body", "_path", "_send", "_start", "_streams")

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._start: Message | None = None
        self._body = b""
        self._streams = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            kind = dict(headers).get(b"content-type", b"")
            self._streams = is_event_stream(headers)
            if message["status"] >= 400 and kind.startswith(b"application/json"):
                self._start = message
                return
        elif self._start is not None:
            await self._add(self._start, message)
            return
        elif self._streams and b'"error"' in message.get("body", b""):
            message = {**message, "body": clean_events(message["body"], self._path)}
        await self._send(message)

    async def _add(self, start: Message, message: Message) -> None:
        self._body += message.get("body", b"")
        more = message.get("more_body", False)
        if more and len(self._body) <= MAX_ERROR_BYTES:
            return
        body = self._body if more else _clean_body(self._body)
        length = (b"content-length", b"%d" % len(body))
        kept = [header for header in start["headers"] if header[0].lower() != length[0]]
        self._start = None
        await self._send({**start, "headers": kept if more else [*kept, length]})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _clean_body(body: bytes) -> bytes:
    value = decode(body)
    error = error_in(value)
    if error is None:
        return body
    clean = {"message": clean_message(error["message"])}
    if error.get("param", "") is None and (field := in_plain_words(error["message"])[1]):
        clean["param"] = field
    return encode_json({**value, "error": {**error, **clean}})


def clean_events(data: bytes, path: str) -> bytes:
    """Returns server-sent events with each error among them in the form of the request's API.

    Args:
        data: Whole events.
        path: The request's path, relative to the application.
    """
    return b"".join(_clean_event(event, path) for event in split_events(data))


def _clean_event(event: bytes, path: str) -> bytes:
    error = read_error(event)
    if error is None:
        return event
    error.message = clean_message(error.message)
    return error_event(error, path)
