"""Puts the errors of an application that is not ours into the form of the request's API."""

from __future__ import annotations

import logging
from typing import Any

from truthgpt_serve.errors import OverloadedError, UnavailableError
from truthgpt_serve.http.asgi import (
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    header,
    relative_path,
    send_error,
)
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, may_be_foreign, read_error
from truthgpt_serve.http.headers import BODY_HEADERS, lower_case

logger = logging.getLogger(__name__)

_RETRY_AFTER = {
    kind.status: b"%d" % (kind.default_retry_after_s or 1)
    for kind in (OverloadedError, UnavailableError)
}


class ShapedErrors:
    """An application whose errors have one form for each API, whoever makes them.

    Answers below status 400 pass untouched, piece by piece. An exception behind a whole answer ends
    here: Starlette raises what it has answered with a 500 once more, and for an exception servers
    close the connection, perhaps while the next request is on its way.

    Args:
        app: The application.
        name: The model name, for messages.
    """

    def __init__(self, app: Any, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._name)
        try:
            await self._app(scope, receive, answer)
        except Exception:
            if not answer.is_whole:
                raise
            logger.exception("the application of model %r failed", self._name)


class _Answer:
    """The way back of one request: holds an error until it is whole.

    Attributes:
        is_whole: Whether all of the answer has been sent.
    """

    __slots__ = ("_body", "_held", "_name", "_scope", "_send", "is_whole")

    def __init__(self, scope: Scope, send: Send, name: str) -> None:
        self._scope = scope
        self._send = send
        self._name = name
        self._held: Message | None = None
        self._body = b""
        self.is_whole = False

    async def __call__(self, message: Message) -> None:
        await self._take(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_whole = True

    async def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and message["status"] >= 400:
            await self._begin(message)
        elif self._held is None:
            await self._send(message)
        elif kind != "http.response.body":
            await self._flush()
            await self._send(message)
        else:
            await self._add(message)

    async def _begin(self, message: Message) -> None:
        status = message["status"]
        headers = lower_case(message)
        if status in _RETRY_AFTER and header(headers, b"retry-after") is None:
            headers.append((b"retry-after", _RETRY_AFTER[status]))
        message = {**message, "headers": headers}
        if not may_be_foreign(status, headers):
            await self._send(message)
        else:
            self._held = message

    async def _flush(self) -> None:
        start, body, self._held, self._body = self._held, self._body, None, b""
        if start is not None:
            await self._send(start)
        if body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _add(self, message: Message) -> None:
        self._body += message.get("body", b"")
        more = message.get("more_body", False)
        if more and len(self._body) <= MAX_ERROR_BYTES:
            return
        start = self._held
        error = None
        if start is not None and not more and len(self._body) <= MAX_ERROR_BYTES:
            path = relative_path(self._scope)
            error = read_error(
                start["status"],
                self._body,
                method=self._scope["method"],
                path=path,
                model=self._name,
            )
            if error is not None:
                self._held, self._body = None, b""
                await send_error(self._send, error, headers=_kept(start["headers"]), path=path)
                return
        body, self._body = self._body, b""
        await self._flush()
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _kept(headers: Headers) -> Headers:
    return [header for header in headers if header[0] not in BODY_HEADERS]
