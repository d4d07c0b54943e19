"""Words the refusals of Ray Serve's queue in front of a replica as the router words its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.asgi import (
    Message,
    Receive,
    Scope,
    Send,
    header,
    relative_path,
    send_error,
    send_nothing,
)
from truthgpt_serve.http.cors import Cors
from truthgpt_serve.http.headers import lower_case
from truthgpt_serve.queue_full import queue_full

App = Callable[[Scope, Receive, Send], Awaitable[Any]]
_PLAIN = b"text/plain"


class QueueAnswers:
    """The application of Ray's replica, whose 429 has the form of the request's API.

    Ray's is plain text; no other 429 comes so from a replica.

    Args:
        app: The application, with the queue.
        name: The model name.
        num_requests: Requests that the replica runs and has wait.
        allow_origins: Origins whose pages may read the answer.
    """

    def __init__(
        self, app: App, name: str, num_requests: int, allow_origins: Sequence[str]
    ) -> None:
        self._app = app
        self._error = queue_full(f"model {name!r}", num_requests)
        self._refused = Cors(self._refuse, allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        refused = False

        def send_worded(message: Message) -> Awaitable[None]:
            """No coroutine itself, which each piece of a stream would pay for."""
            nonlocal refused
            if message.get("status") == OverloadedError.status:
                kind = header(lower_case(message), b"content-type") or b""
                refused = kind.startswith(_PLAIN)
            return send_nothing() if refused else send(message)

        await self._app(scope, receive, send_worded if scope["type"] == "http" else send)
        if refused:
            await self._refused(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_error(send, self._error, path=relative_path(scope))
