"""ASGI middleware that logs and traces each request when it has ended."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

from truthgpt_serve.access.meter import USAGE_KEY
from truthgpt_serve.http.asgi import READS, Message, Receive, Scope, Send
from truthgpt_serve.telemetry.access_log import AccessLog
from truthgpt_serve.telemetry.record import RECORD_KEY, RequestRecord
from truthgpt_serve.telemetry.tracing import Tracer
from truthgpt_serve.usage.counted import Usage, counting

PROBES = frozenset(
    (
        *("/health", "/ready", "/metrics", "/-/healthz", "/-/routes"),
        *("/v2/health/live", "/v2/health/ready"),
    )
)
"""Routes that are read every second or so, and of which nothing is told."""
_FAILED = 400


class Watched:
    """Tells of the requests to an application.

    What stands further out may be one too, in front of Ray Serve's queue: then this one only notes
    that the queue has let the request through.

    Args:
        app: The application.
        log: Gets a line for each request.
        model: The model's name; empty for the router.
        mount: Where the application is mounted, in front of Ray's server.
        tracer: Makes a span of each request; None makes none.
    """

    def __init__(
        self,
        app: Any,
        log: AccessLog,
        *,
        model: str = "",
        mount: str = "",
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._app = app
        self._log = log
        self._model = model
        self._mount = mount

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (record := scope.get(RECORD_KEY)) is not None:
            record.reach()
            with counting(scope[USAGE_KEY]):
                await self._app(scope, receive, send)
        elif self._tracer is not None or self._log.is_on:
            await self._watch(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = RequestRecord(scope, self._model, self._mount)
        if record.path in PROBES and scope["method"] in READS:
            await self._app(scope, receive, send)
            return
        usage = scope[USAGE_KEY] = Usage()
        scope[RECORD_KEY] = record
        if self._tracer is not None:
            self._tracer.begin(record)

        def send_noted(message: Message) -> Awaitable[None]:
            # Of a stream's pieces between the first and the last nothing is noted.
            if record.first_s is None or not message.get("more_body"):
                record.note(message)
            return send(message)

        record.is_cancelled = True
        try:
            with counting(usage):
                await self._app(scope, receive, send_noted)
            record.is_cancelled = False
        except Exception:
            record.is_cancelled = False
            record.fail()
            raise
        finally:
            if not record.is_whole:
                record.last_s = time.perf_counter()
            record.usage.finish(failed=record.status >= _FAILED)
            self._end(record)
            del scope[RECORD_KEY]  # it holds the scope: else only the garbage collector frees both

    def _end(self, record: RequestRecord) -> None:
        if self._tracer is not None:
            self._tracer.end(record)
        if not record.is_told_elsewhere:
            self._log.write(record)
