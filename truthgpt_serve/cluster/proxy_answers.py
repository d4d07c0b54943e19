"""Puts the errors that Ray's Python proxy answers itself into the form of the request's API.

Ray's are plain text, or a page without a reason. HAProxy's are in `haproxy/answers.py`. A router,
which comes through the same proxy, reads Ray's own.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from truthgpt_serve.errors import (
    OverloadedError,
    RouteNotFoundError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
)
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, header, send_error
from truthgpt_serve.http.cors import Cors
from truthgpt_serve.http.foreign_errors import read_passed_error
from truthgpt_serve.http.headers import lower_case
from truthgpt_serve.queue_full import queue_full, read_ray_refusal

App = Callable[[Scope, Receive, Send], Awaitable[Any]]
ROUTER_HEADER = b"x-forwarded-prefix"
"""What every request of a router has."""
MAX_TEXT_BYTES = 65536
_PLAIN = b"text/plain"
_MODEL = re.compile(r"/models/([^/]+)")


class ProxyAnswers:
    """The application of Ray's proxy, whose errors in plain text have the form of their API.

    Args:
        app: The application.
        allow_origins: Origins whose pages may read an answer.
    """

    def __init__(self, app: App, allow_origins: Sequence[str]) -> None:
        self._app = app
        self._allow_origins = allow_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http" or header(scope["headers"], ROUTER_HEADER) is not None:
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            if answer.error is not None or not answer.has_begun:
                error = answer.error or UpstreamError(
                    f"A replica of {owner_of(scope)} failed before it answered"
                )
                await self._refuse(_worded(error, answer.text, scope), scope, receive, send)

    async def _refuse(
        self, error: TruthGPTError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send_error(send, error, path=below_mount(scope["path"]))

        await Cors(answer, self._allow_origins)(scope, receive, send)


def below_mount(path: str) -> str:
    """Returns a path below its model's own address, where it is one."""
    found = _MODEL.match(path)
    return path[found.end() :] if found else path


def model_of(scope: Scope) -> str | None:
    """Returns the model whose answer a request waits for; None is the router."""
    found = _MODEL.match(scope["path"])
    return found[1] if found else None


def owner_of(scope: Scope) -> str:
    """Returns whose answer a request waits for, in words."""
    name = model_of(scope)
    return "the router" if name is None else f"the model {name!r}"


def _worded(error: TruthGPTError, text: bytes, scope: Scope) -> TruthGPTError:
    if error.status == OverloadedError.status and (queued := read_ray_refusal(text)) is not None:
        return queue_full(owner_of(scope).removeprefix("the "), queued)
    for kind in (UnavailableError, RouteNotFoundError):
        if error.status == kind.status:
            return kind(error.message)
    return error


class _Answer:
    """The way back of one request.

    Attributes:
        has_begun: Whether an answer came.
        error: What it means, if it is an error in plain text; nothing has been sent then.
        text: Its body.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self.has_begun = False
        self.error: TruthGPTError | None = None
        self.text = b""

    async def send(self, message: Message) -> None:
        """Passes a message on, unless it is of an error in plain text."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            kind = header(lower_case(message), b"content-type") or b""
            is_error = message["status"] >= 400 and kind.startswith(_PLAIN)
            self._status = message["status"] if is_error else 0
        if not self._status:
            await self._send(message)
            return
        if message["type"] == "http.response.body":
            self.text = (self.text + message.get("body", b""))[:MAX_TEXT_BYTES]
        self.error = read_passed_error(self._status, self.text)
