"""Gives an event stream that begins with an error that error's own status.

vLLM checks much of a request only when the stream runs, after it has sent status 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.errors import PassedError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, relative_path, send_error
from truthgpt_serve.http.foreign_errors import decode
from truthgpt_serve.http.sse import is_event_stream, read_data

_BAD_REQUEST, _FAILED = 400, 500


class EarlyErrors:
    """An application whose streams send their head with the first event.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http" and scope["method"] == "POST":
            send = _Answer(relative_path(scope), send).send
        await self._app(scope, receive, send)


class _Answer:
    """One answer, held back until it is known whether it begins with an error."""

    __slots__ = ("_head", "_passes", "_path", "_replaced", "_send")

    def __init__(self, path: str, send: Send) -> None:
        self._path = path
        self._send = send
        self._head: Message | None = None
        self._passes = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._passes:
            await self._send(message)
        elif self._head is None:
            if _is_stream(message):
                self._head = message
                return
            self._passes = True
            await self._send(message)
        elif not self._replaced:
            await self._send_first(self._head, message)

    async def _send_first(self, head: Message, message: Message) -> None:
        body = message.get("body", b"")
        if not body and message.get("more_body"):
            return
        error = read_error(body)
        if error is None:
            self._passes = True
            await self._send(head)
            await self._send(message)
            return
        self._replaced = True
        kept = [header for header in head["headers"] if header[0].lower() == b"x-request-id"]
        await send_error(self._send, error, headers=kept, path=self._path)


def _is_stream(message: Message) -> bool:
    return message["status"] == 200 and is_event_stream(message["headers"])


def read_error(event: bytes) -> PassedError | None:
    """Returns the error that an event of OpenAI's or Anthropic's API tells of, or None."""
    if b'"error"' not in event:
        return None
    error = error_in(decode(next(read_data(event), b"")))
    if error is None:
        return None
    param = error.get("param")
    return PassedError(
        _status_of(error), error["message"], param=param if isinstance(param, str) else None
    )


def error_in(value: Any) -> Mapping[str, Any] | None:
    """Returns the error of a decoded envelope; None where it has none with a message."""
    error = value.get("error") if isinstance(value, Mapping) else None
    has_message = isinstance(error, Mapping) and isinstance(error.get("message"), str)
    return error if has_message else None


def _status_of(error: Mapping[str, Any]) -> int:
    code = error.get("code")
    if isinstance(code, int) and _BAD_REQUEST <= code < 600:
        return code
    known = {"invalid_request_error": _BAD_REQUEST, "not_found_error": 404, "rate_limit_error": 429}
    return known.get(str(error.get("type")), _FAILED)
