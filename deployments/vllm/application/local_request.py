"""Sends a request to an ASGI application in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from truthgpt_serve.http.asgi import Headers

_MAX_CHUNKS_WAITING = 64


class LocalRequest:
    """One request with JSON; leaving the context before its end is a client that went away.

    Args:
        app: The ASGI application; must be called on the event loop that it runs on.
        path: The route.
        payload: The body.
        request_id: Sent as `x-request-id`.
        method: The HTTP method.
        headers: Further headers.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        payload: Mapping[str, Any],
        request_id: str,
        *,
        method: str = "POST",
        headers: Headers | None = None,
    ) -> None:
        self._app = app
        self._body = json.dumps(payload).encode()
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(self._body)),
                (b"x-request-id", request_id.encode("latin-1", "replace")),
                *(headers or ()),
            ],
            "client": None,
            "server": None,
            "state": {},
        }
        self._sent = False
        self._left = asyncio.Event()
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_CHUNKS_WAITING)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._task
        if self._status.done() and not self._status.cancelled():
            self._status.exception()

    async def status(self) -> int:
        """Returns the answer's status code; raises what the application raised before it."""
        return await self._status

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yields the answer's body as it comes."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk
        if self._task is not None:
            await self._task

    async def read(self) -> bytes:
        """Returns the whole body."""
        return b"".join([chunk async for chunk in self.pieces()])

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            if not self._status.done():
                self._status.set_exception(error)
            raise
        finally:
            self._status.cancel()
            if not self._left.is_set():
                await self._chunks.put(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._status.set_result(message["status"])
        elif body := message.get("body"):
            await self._chunks.put(body)
