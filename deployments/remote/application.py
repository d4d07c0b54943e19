"""The family's ASGI application: three routes of its own, and all else to the remote server.

Knows the routes; how requests travel is the relay's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote, unquote

from deployments.remote.address import has_dot_segments
from deployments.remote.generic import Generic
from deployments.remote.monitor import Monitor
from deployments.remote.relay import Limits, Relay
from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    RequestError,
    ServerError,
    TruthGPTError,
)
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.http.connection import ClientGoneError, Connection
from truthgpt_serve.http.json_body import encode_json, parse_object
from truthgpt_serve.http.routes import refuse
from truthgpt_serve.server.infer.codec import InferExchange

logger = logging.getLogger(__name__)

INFER = "/v1/infer"
MODELS = "/v1/models"
HEALTH = "/health"


class RemoteApplication:
    """Serves one remote model.

    Args:
        names: The model names that clients send: its own, then its aliases.
        relay: Relays requests.
        generic: Answers the contract's inputs.
        monitor: Knows how the remote server is.
        limits: What one request may take.
        paths: Paths that are relayed, with all below them, or None for all.
    """

    def __init__(
        self,
        names: Sequence[str],
        relay: Relay,
        generic: Generic,
        monitor: Monitor,
        limits: Limits,
        paths: list[str] | None,
    ) -> None:
        self._name, self._names = names[0], names
        self._relay = relay
        self._generic = generic
        self._monitor = monitor
        self._limits = limits
        self._paths = paths
        self._created = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one ASGI connection."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "lifespan":
            await _lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no WebSockets here"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = Connection(scope, receive, send)
        try:
            await self._route(connection, send)
        except ClientGoneError:
            logger.debug("request %s: the client left", connection.request_id)
        except TruthGPTError as error:
            await connection.fail(error)
        except Exception:
            logger.exception("request %s failed", connection.request_id)
            message = f"the relay failed; its log has request {connection.request_id}"
            await connection.fail(ServerError(message))

    async def _route(self, connection: Connection, send: Send) -> None:
        raw = _raw_path(connection.scope)
        path = unquote(raw)
        if has_dot_segments(path):
            raise RequestError("the path has a `.` or `..`: write it out")
        if path == INFER:
            _check_method(connection, "POST")
            await self._infer(connection)
        elif path == HEALTH:
            _check_method(connection, "GET", "HEAD")
            self._monitor.refuse_if_down()
            await self._reply(connection, {"status": "ok", "remote": self._monitor.describe()})
        elif path == MODELS or path.startswith(f"{MODELS}/"):
            _check_method(connection, "GET", "HEAD")
            await self._reply(connection, self._card(path.removeprefix(MODELS)[1:]))
        elif self._paths is not None and not _is_below(path, self._paths):
            raise refuse(connection.scope["method"], path, self._name)
        else:
            await self._relay(connection, send, raw)

    @staticmethod
    async def _reply(connection: Connection, value: dict[str, Any]) -> None:
        await connection.reply(encode_json(value))

    def _card(self, wanted: str) -> dict[str, Any]:
        if wanted:
            self._check_name(wanted)
            return self._entry(wanted)
        return {"object": "list", "data": [self._entry(name) for name in self._names]}

    def _entry(self, name: str) -> dict[str, Any]:
        entry = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "truthgpt-serve",
            "remote": self._monitor.describe(),
        }
        return entry if name == self._name else {**entry, "alias_of": self._name}

    def _check_name(self, model: str) -> None:
        if model not in self._names:
            raise ModelNotFoundError(
                f"the model {model!r} does not exist here; this is {self._name!r}", param="model"
            )

    async def _infer(self, connection: Connection) -> None:
        limits = self._limits
        body = parse_object(await connection.read(limits.max_body_bytes, limits.max_request_s))
        exchange = InferExchange(body, "RemoteModel")
        self._check_name(exchange.model)
        exchange.name_model(self._name)
        given, request_id = connection.scope["headers"], connection.request_id
        async with connection.guard(limits.max_request_s) as guard:
            if not exchange.stream:
                outputs = await self._generic.infer(exchange.prepare(), given, request_id)
                answer = await asyncio.to_thread(exchange.answer, outputs)
                guard.release()
                await connection.reply(answer)
                return
            items = self._generic.stream(exchange.prepare(), given, request_id)
            async with aclosing(items):
                async for item in items:
                    await connection.emit(exchange.piece(item))
            guard.release()
            await connection.emit(exchange.finish())
            await connection.end_events()


def _raw_path(scope: Scope) -> str:
    """Returns the percent-encoded path below the mount point.

    Whether the server left the mount point in the path differs; a model's name needs no encoding.
    """
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    path = raw.partition(b"?")[0].decode("latin-1")
    root = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path.removeprefix(root)
    return path or "/"


def _is_below(path: str, prefixes: list[str]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix.rstrip('/')}/") for prefix in prefixes)


def _check_method(connection: Connection, *methods: str) -> None:
    if connection.scope["method"] not in methods:
        message = f"this route takes {' or '.join(methods)}, not {connection.scope['method']}"
        raise MethodError(message, allow=methods)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
