"""Builds an application when its first request comes.

Gradio and the pages take 100 MB and 0.7 % of a core, which a service without visitors does
not need.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_error

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
"""How long the application may take for its end."""


class OnFirstRequest:
    """Stands in front of an application that is not there yet.

    All requests that come meanwhile wait for the one that builds it. After a failure they are
    answered 500, and the next one tries again.

    Args:
        build: Returns the application. It is started before its first request, and stopped with
            this one.
    """

    def __init__(self, build: Callable[[], Awaitable[Any]]) -> None:
        self._build = build
        self._built: asyncio.Task[Lifespan] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._built is None:
            self._built = asyncio.ensure_future(self._start())
        building = self._built
        try:
            built = await asyncio.shield(building)
        except Exception:  # whatever an import raises
            if self._built is building:
                self._built = None
                logger.exception("the playground cannot be built")
            await self._refuse(scope, send)
            return
        await built.app(scope, receive, send)

    async def _start(self) -> Lifespan:
        lifespan = Lifespan(await self._build())
        await lifespan.start()
        return lifespan

    async def _refuse(self, scope: Scope, send: Send) -> None:
        if scope["type"] == "http":
            cause = "the playground cannot be built: the log of its replica says why"
            await send_error(send, ServerError(cause))
        else:
            await send({"type": "websocket.close", "code": 1011})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Stops the application, if it was built."""
        built, self._built = self._built, None
        if built is not None and built.done() and not built.cancelled() and not built.exception():
            await built.result().stop()
        elif built is not None:
            built.cancel()


class Lifespan:
    """The lifespan of an application, in a task of its own.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._orders: asyncio.Queue[Message] = asyncio.Queue(1)
        self._answers: asyncio.Queue[Message] = asyncio.Queue(1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the application.

        Raises:
            RuntimeError: It does not start; the message is its own.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        run = self.app(scope, self._orders.get, self._answers.put)
        self._task = asyncio.ensure_future(run)
        await self._order("startup")

    async def stop(self) -> None:
        """Stops the application; one that takes too long is cancelled."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._order("shutdown")
        finally:
            if self._task is not None:
                self._task.cancel()

    async def _order(self, what: str) -> None:
        assert self._task is not None
        await self._orders.put({"type": f"lifespan.{what}"})
        answer = asyncio.ensure_future(self._answers.get())
        await asyncio.wait((self._task, answer), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await self._task  # it ended without an answer: by an exception of its own
            raise RuntimeError(f"the application ended at its {what}")
        message = answer.result()
        if message["type"] != f"lifespan.{what}.complete":
            raise RuntimeError(message.get("message") or f"the application failed at its {what}")
