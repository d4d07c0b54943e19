"""Words the end of a request whose client set a limit of its own, on every way in the same form.

Ray Serve ends it: in plain text before the answer has begun, and afterwards without a word. On the
way through a router both the router's process and the model's do, and either may be the first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from truthgpt_serve.errors import RequestError, SlowRequestError
from truthgpt_serve.http.asgi import (
    UNREAD_TIMEOUT_S,
    Message,
    Receive,
    Scope,
    Send,
    header,
    relative_path,
    send_error,
)
from truthgpt_serve.http.cors import Cors
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.headers import lower_case
from truthgpt_serve.http.sse import WholeEvents, is_event_stream

App = Callable[[Scope, Receive, Send], Awaitable[Any]]
HEADER = "x-request-timeout-seconds"
_HEADER = HEADER.encode()
TURN_HEADER = b"x-request-timeout-ms"
MAX_DIGITS = 9
_PLAIN = b"text/plain"


class ClientLimits:
    """The application of a process of Ray's, where a request may bring a limit by its header.

    Args:
        app: The application, which ends such a request in time.
        allow_origins: Origins whose pages may read the answer.
    """

    def __init__(self, app: App, allow_origins: Sequence[str]) -> None:
        self._app = app
        self._allow_origins = allow_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        limit_s = read_limit(scope) if scope["type"] == "http" else None
        if limit_s is None:
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        end_s = asyncio.get_running_loop().time() + limit_s
        left: asyncio.CancelledError | None = None
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError as error:  # Ray raises it itself, also when the client left
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            left = error
        late = SlowRequestError(
            f"The request did not finish within {limit_s:g} s, the limit of its header `{HEADER}`"
        )
        if answer.is_refused:
            await self._refuse(late, scope, receive, send)
        elif asyncio.get_running_loop().time() >= end_s and answer.may_follow:
            await answer.end(error_event(late, relative_path(scope)))
        elif left is not None:
            raise left

    async def _refuse(
        self, error: SlowRequestError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await send_error(send, error, path=relative_path(scope))

        await Cors(answer, self._allow_origins)(scope, receive, send)


def read_limit(scope: Scope) -> float | None:
    """Returns a request's own limit in seconds by its last header, as Ray reads it, or None."""
    value = header(reversed(scope["headers"]), _HEADER)
    if value is None:
        return None
    try:
        limit_s = float(value)
    except ValueError:
        return None
    return limit_s if 0 < limit_s < math.inf else None


def read_turn_limit(scope: Scope) -> float | None:
    """Returns how long a request may wait for its turn as its header says, in seconds, or None.

    Raises:
        RequestError: It says no time.
    """
    value = header(scope["headers"], TURN_HEADER)
    if value is None:
        return None
    if not value.isdigit() or len(value) > MAX_DIGITS or not int(value):
        most = "9" * MAX_DIGITS
        raise RequestError(
            f"`x-request-timeout-ms` must be a whole number of milliseconds from 1 to {most}"
        )
    return int(value) / 1000


class _Answer:
    """The way back of one request.

    Attributes:
        is_refused: Whether Ray has ended it before an answer; nothing has been sent then.
    """

    __slots__ = ("_events", "_is_over", "_send", "is_refused")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._events: WholeEvents | None = None
        self._is_over = False
        self.is_refused = False

    async def send(self, message: Message) -> None:
        """Passes a message on, unless it is Ray's refusal or comes too late."""
        if message["type"] == "http.response.start":
            self._begin(message)
        if self.is_refused or self._is_over:
            return
        if message["type"] == "http.response.body":
            self._is_over = not message.get("more_body", False)
            if self._events is not None:
                data = self._events.feed(message.get("body", b""))
                if self._is_over:
                    data += self._events.finish()
                elif not data:
                    return
                message = {**message, "body": data}
        await self._send(message)

    def _begin(self, message: Message) -> None:
        headers = lower_case(message)
        if message["status"] == SlowRequestError.status:
            kind = header(headers, b"content-type") or b""
            self.is_refused = kind.startswith(_PLAIN)
        elif is_event_stream(headers):
            self._events = WholeEvents()

    @property
    def may_follow(self) -> bool:
        """Whether this is a stream of events that another one may still follow."""
        return self._events is not None and self._events.between and not self._is_over

    async def end(self, event: bytes) -> None:
        """Ends the stream with an event; a client that does not read it sees it broken off."""
        self._is_over = True
        try:
            async with asyncio.timeout(UNREAD_TIMEOUT_S):
                await self._send({"type": "http.response.body", "body": event})
        except TimeoutError:
            pass
