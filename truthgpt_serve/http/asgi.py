"""ASGI's types, the whole answers of every application of ours, and bodies given once more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.json_body import encode_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

LEAVING_KEY = "truthgpt.leaving"
"""In a scope: the set of functions that are called when the client leaves, so that nobody needs a
task of its own to listen. Absent where only `receive` tells it.
"""
READS = ("GET", "HEAD")
"""Methods that change nothing and cost little."""
CANCEL = ("/v1/responses/", "/cancel")
"""What is in the path, and at its end, of a `POST` that ends work which was begun before."""
UNREAD_TIMEOUT_S = 5.0
"""How long the error that ends a stream waits for a client that does not read."""
REPLAYED_BYTES = 64 * 1024
"""What of a decompressed body is given on at a time, as when it comes from a connection."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Returns the first header of this name, in lower case, or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def relative_path(scope: Scope) -> str:
    """Returns the path below the mount point, whether or not the server left that in the path."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path


def is_work(scope: Scope) -> bool:
    """Returns whether a connection may make work for a model: others need no place there."""
    if scope["type"] != "http":
        return True
    method = scope["method"]
    if method == "POST":
        (within, end), path = CANCEL, scope["path"]
        return not (path.endswith(end) and within in path)
    return method not in READS and method != "OPTIONS"


async def send_nothing() -> None:
    """Stands for the sending of a message that is dropped."""


async def send_bytes(
    send: Send,
    body: bytes,
    content_type: bytes,
    *,
    status: int = 200,
    headers: Headers | None = None,
) -> None:
    """Sends a whole answer of any type."""
    lines = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_json(
    send: Send, value: Any, *, status: int = 200, headers: Headers | None = None
) -> None:
    """Sends a whole JSON answer."""
    await send_bytes(send, encode_json(value), b"application/json", status=status, headers=headers)


async def send_error(
    send: Send, error: TruthGPTError, *, headers: Headers | None = None, path: str = ""
) -> None:
    """Sends an error in the form of the request's API.

    Args:
        send: ASGI `send`; nothing must have been sent yet.
        error: The error.
        headers: Further headers, lower case; one that the error brings too is taken from here.
        path: The request's path below the application, which decides the form.
    """
    lines = list(headers or [])
    given = {name for name, _ in lines}
    lines += [header for header in _error_headers(error) if header[0] not in given]
    await send_json(send, error_body(error, path), status=error.status, headers=lines)


def _error_headers(error: TruthGPTError) -> Headers:
    lines = []
    retry_after_s = error.retry_after_s
    if retry_after_s is None:
        retry_after_s = error.default_retry_after_s
    if retry_after_s is not None:
        lines.append((b"retry-after", b"%d" % retry_after_s))
    if error.allow:
        lines.append((b"allow", ", ".join(error.allow).encode()))
    if error.challenge:
        lines.append((b"www-authenticate", error.challenge.encode()))
    if error.accepted_codings:
        lines.append((b"accept-encoding", ", ".join(error.accepted_codings).encode()))
    return [*lines, *error.headers]


class Replay:
    """A `receive` that gives a body in pieces, as a connection does, and then what comes after it.

    Args:
        body: The pieces that were read; each is let go when it has been given.
        receive: What to ask then.
        release: Called when the body has been worked on: at the first message after it.
    """

    def __init__(
        self, body: list[bytes], receive: Receive, release: Callable[[], None] = lambda: None
    ) -> None:
        self._waiting = deque(memoryview(piece) for piece in body)
        body.clear()
        self._receive = receive
        self.release = release
        self._begun = self._ended = False

    async def __call__(self) -> Message:
        """Returns the next message; other tasks run before every one but the first."""
        if self._ended:
            self.release()
            return await self._receive()
        if self._begun:
            await asyncio.sleep(0)
        self._begun = True
        piece = bytes(self._next())
        self._ended = not self._waiting
        return {"type": "http.request", "body": piece, "more_body": not self._ended}

    def _next(self) -> bytes | memoryview:
        if not self._waiting:
            return b""
        first = self._waiting.popleft()
        if len(first) > REPLAYED_BYTES:
            self._waiting.appendleft(first[REPLAYED_BYTES:])
        return first[:REPLAYED_BYTES]


class WholeBody:
    """A `receive` of a body that is here, for all to look at, and then of what comes after it.

    Args:
        body: The body.
        receive: What to ask then.

    Attributes:
        body: The body; None once somebody has received it.
    """

    __slots__ = ("_receive", "body")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        """Returns the next message."""
        if self.body is None:
            return await self._receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


def body_of(receive: Receive) -> bytes | None:
    """Returns the body of a request if it is here as a whole, and nobody has received it yet."""
    return receive.body if isinstance(receive, WholeBody) else None
