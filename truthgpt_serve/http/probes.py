"""Answers health checks, scrapes of metrics and preflights beside the queue of requests.

An application's server hands every request to Ray, which counts it and lets it wait or refuses it
when the replica is full.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_error
from truthgpt_serve.http.cors import is_preflight
from truthgpt_serve.queue_full import queue_full

TIMEOUT_S = 10.0
"""How long an answer may take: Prometheus' own limit."""
MAX_TOGETHER = 16
"""Most probes at once, because nothing else bounds them."""
METHODS = ("GET", "HEAD")
METRICS = "/metrics"
HEALTH = "/health"

_SCRAPE = re.compile(rf"/models/[^/]+{METRICS}/?$")

App = Callable[[Scope, Receive, Send], Awaitable[Any]]


class Probes:
    """An ASGI application that answers probes itself and leaves everything else to another.

    Args:
        app: Takes everything else.
        probed: Answers the probes.
        mount: The path that `probed` is mounted at, without a slash at its end.
        paths: The probes' paths below it.
    """

    def __init__(self, app: App, probed: App, mount: str, paths: Collection[str]) -> None:
        self._app = app
        self._probed = probed
        self._mount = mount
        self._paths = frozenset(paths)
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if not self._is_probe(scope):
            await self._app(scope, receive, send)
        elif self._ongoing >= MAX_TOGETHER:
            error = queue_full("health checks and scrapes", MAX_TOGETHER)
            await send_error(send, error, path=scope["path"])
        else:
            self._ongoing += 1
            try:
                await self._answer(scope, receive, send)
            finally:
                self._ongoing -= 1

    def _is_probe(self, scope: Scope) -> bool:
        if is_preflight(scope):
            return True
        if scope["type"] != "http" or scope["method"] not in METHODS:
            return False
        mount = scope.get("root_path", "") + self._mount
        path: str = scope["path"]
        # With a slash at its end too: vLLM sends those there who ask for its metrics.
        return path.startswith(mount) and path[len(mount) :].removesuffix("/") in self._paths

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_started(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        mounted = {**scope, "root_path": scope.get("root_path", "") + self._mount}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._probed(mounted, receive, send_started)
        except TimeoutError:
            if started:
                raise
            message = f"{scope['path']} was not answered within {TIMEOUT_S:g} s"
            await send_error(send, UnavailableError(message), path=scope["path"])


def refuse_metrics(app: App) -> App:
    """Returns the application of a proxy for models without a replica: it has no metrics of them.

    Else a scrape would wait until the model has started, and wake one that scales to zero.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in METHODS and _SCRAPE.match(scope["path"]):
            error = UnavailableError("the model has no running replica", retry_after_s=5)
            await send_error(send, error, path=scope["path"])
        else:
            await app(scope, receive, send)

    return serve
