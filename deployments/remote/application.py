"""The family's ASGI application: three routes of its own, and all else to the remote server.

`relay` passes requests on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from deployments.remote.address import has_dot_segments
from deployments.remote.capabilities import Capabilities
from deployments.remote.health import Monitor
from deployments.remote.relay import Relay
from deployments.remote.translating import Translating
from truthgpt_serve.errors import RequestError, not_here
from truthgpt_serve.http.asgi import Scope
from truthgpt_serve.http.caller import Bounds
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.front import Handler, RoutedFront
from truthgpt_serve.http.json_body import encode_json, model_entry
from truthgpt_serve.http.routes import refuse
from truthgpt_serve.server.infer.counts import TextCount
from truthgpt_serve.server.infer.routes import PATH as INFER
from truthgpt_serve.server.infer.routes import InferRoute, OverBackend
from truthgpt_serve.server.openai_backend import OpenAIBackend
from truthgpt_serve.server.over_chat.routes import TRANSLATED

MODELS = "/v1/models"
HEALTH = "/health"


class RemoteApplication(RoutedFront):
    """Serves one remote model.

    Args:
        names: The model names that clients send: its own, then its aliases.
        relay: Relays requests.
        backend: Answers the contract's inputs.
        monitor: Knows how the remote server is.
        bounds: What one request may take.
        paths: Paths that are relayed, with all below them, or None for all.
        is_text: Whether the model generates text, so that other APIs can be had over its chat.
    """

    def __init__(
        self,
        names: Sequence[str],
        relay: Relay,
        backend: OpenAIBackend,
        monitor: Monitor,
        bounds: Bounds,
        paths: list[str] | None,
        *,
        is_text: bool = False,
    ) -> None:
        super().__init__(f"the relay of the model {names[0]!r}")
        self._name, self._names = names[0], names
        self._relay = relay
        infer = OverBackend(backend, "RemoteModel")
        self._infer = InferRoute(infer, self._own_name, bounds, TextCount)
        self._translating = Translating(relay, self.serve, self._name, bounds)
        self._translated = TRANSLATED if is_text else ()
        self._monitor = monitor
        self._capabilities = Capabilities(monitor) if is_text else None
        self._paths = paths
        self._created = int(time.time())

    def find(self, connection: Connection) -> Handler:
        """Returns the handler of a request."""
        raw = _raw_path(connection.scope)
        path, method = unquote(raw), connection.scope["method"]
        if has_dot_segments(path):
            raise RequestError("the path has a `.` or `..`: write it out")
        own = self._find_own(path)
        if own is not None:
            allowed, handler = own
            if method not in allowed:
                raise refuse(method, path, self._name)
            return handler
        if self._paths is not None and not _is_below(path, self._paths):
            raise refuse(method, path, self._name)
        if method == "POST" and path in self._translated:
            return partial(self._translating, path=raw)
        return partial(self._relay, path=raw)

    def _find_own(self, path: str) -> tuple[tuple[str, ...], Handler] | None:
        if path == INFER:
            return ("POST",), self._infer
        if path == HEALTH:
            return ("GET", "HEAD"), self._health
        if path == MODELS or path.startswith(f"{MODELS}/"):
            return ("GET", "HEAD"), partial(self._card, path.removeprefix(MODELS)[1:])
        return None

    async def _health(self, connection: Connection) -> None:
        self._monitor.refuse_if_down()
        state = {"status": "ok", "remote": self._monitor.describe()}
        await connection.reply(encode_json(state))

    async def _card(self, wanted: str, connection: Connection) -> None:
        value: dict[str, Any]
        if wanted:
            self._own_name(wanted)
            value = self._entry(wanted)
            if self._capabilities is not None and (can := await self._capabilities.find()):
                value["capabilities"] = can
        else:
            value = {"object": "list", "data": [self._entry(name) for name in self._names]}
        await connection.reply(encode_json(value))

    def _entry(self, name: str) -> dict[str, Any]:
        entry = model_entry(name, self._created, self._name)
        return {**entry, "remote": self._monitor.describe()}

    def _own_name(self, model: str) -> str:
        if model not in self._names:
            raise not_here(model, self._name)
        return self._name


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
