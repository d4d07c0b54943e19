"""An ASGI application in front of another that lets in only requests with a key, within its limits.

It answers before a body is read and before a request waits in a queue.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from truthgpt_serve.access.credentials import HEADERS
from truthgpt_serve.access.identity import ANONYMOUS, SCOPE_KEY, Identity
from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.access.meter import METERED_KEY, Meter, Metered
from truthgpt_serve.cluster.haproxy.playground import START_PATH
from truthgpt_serve.errors import AuthenticationError, ModelNotFoundError, TruthGPTError
from truthgpt_serve.http.asgi import READS, Receive, Scope, Send, relative_path
from truthgpt_serve.http.connection import Connection, refuse_websocket
from truthgpt_serve.http.cors import Cors, is_preflight
from truthgpt_serve.http.file_store import FILES_PATH

OPEN_AT_SERVICE = frozenset(
    ("/", "/health", "/ready", "/v2/health/live", "/v2/health/ready", START_PATH)
)
"""Routes of the router that need no key: they say whether it lives, and where its pages are."""
OPEN_AT_MODEL = frozenset(("/health",))
SERVER_ROUTES = frozenset(("/-/healthz", "/-/routes"))
"""What Ray's server of a replica answers itself, and HAProxy asks it for."""
_REFUSAL = "truthgpt.refusal"


class Gate:
    """Lets requests in by their keys, and notes in their scope whose they are.

    What stands further out may be a gate too: a request that it let in passes.

    Args:
        app: The application.
        keys: The keys.
        open_routes: Paths that need no key to be read, below the mount point.
        mount: Where the application is mounted, if this gate stands in front of Ray's server, which
            answers `SERVER_ROUTES` itself; None behind it.
        names: The model's own name, aliases and adapters; empty for the router, which looks
            itself which models a key may use.
        allow_origins: Origins whose pages may read a refusal.
        hides_key: Whether the application does not see the key.
        meter: Counts what requests do; None where they do not count.
    """

    def __init__(
        self,
        app: Any,
        keys: KeyRing,
        open_routes: Collection[str],
        *,
        mount: str | None = None,
        names: Sequence[str] = (),
        allow_origins: Sequence[str] = (),
        hides_key: bool = False,
        meter: Meter | None = None,
    ) -> None:
        self._app = app
        self._meter = meter
        self._keys = keys
        self._open = frozenset(open_routes)
        self._mount = mount
        self._names = names
        self._hides_key = hides_key
        self._refused = Cors(_send_refusal, allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] == "lifespan" or is_preflight(scope):
            await self._app(scope, receive, send)
            return
        if SCOPE_KEY in scope:  # a gate further out has let it in
            metered: Metered | None = scope.get(METERED_KEY)
            if metered is None:
                await self._app(self._without_key(scope), receive, send)
            else:
                await metered.work(self._app, self._without_key(scope), receive, send)
            return
        meter = self._meter if scope.get("method") not in READS else None
        try:
            identity = self._identify(scope)
            metered = None if meter is None else await meter.begin(identity, scope, send)
        except TruthGPTError as error:
            await self._refuse(error, scope, receive, send)
            return
        scope[SCOPE_KEY] = identity
        if metered is None:
            await self._app(self._without_key(scope), receive, send)
            return
        try:
            await metered.answer(self._app, self._without_key(scope), receive)
        finally:
            del scope[METERED_KEY]  # it holds `send`, and that may hold the scope

    def _identify(self, scope: Scope) -> Identity:
        try:
            identity = self._keys.identify(scope["headers"])
        except AuthenticationError:
            if self._is_open(scope):
                return ANONYMOUS
            raise
        if identity.is_internal and scope.get("method") not in READS:
            raise AuthenticationError("a process of the service may only read")
        names = self._names
        if identity.models is not None and names and not identity.may_use_any(names, names[0]):
            if self._is_open(scope):
                return ANONYMOUS
            raise hidden_model(names[0])
        return identity

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] not in READS:
            return False
        if self._mount is not None and relative_path(scope) in SERVER_ROUTES:
            return True
        path = relative_path(self._mounted(scope))
        if path.startswith(FILES_PATH):
            return FILES_PATH.rstrip("/") in self._open
        return path in self._open or (path[-1:] == "/" and path[:-1] in self._open)

    def _mounted(self, scope: Scope) -> Scope:
        if not self._mount:
            return scope
        return {**scope, "root_path": scope.get("root_path", "") + self._mount}

    def _without_key(self, scope: Scope) -> Scope:
        if not self._hides_key:
            return scope
        kept = [header for header in scope["headers"] if header[0] not in HEADERS]
        return {**scope, "headers": kept}

    async def _refuse(
        self, error: TruthGPTError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send, error)
        else:
            await self._refused({**self._mounted(scope), _REFUSAL: error}, receive, send)


def hidden_model(name: str) -> ModelNotFoundError:
    """Returns the error of a model that a key may not use or that does not exist: both alike."""
    return ModelNotFoundError(
        f"The model {name[:200]!r} does not exist, or this API key may not use it", param="model"
    )


async def _send_refusal(scope: Scope, receive: Receive, send: Send) -> None:
    await Connection(scope, receive, send).fail(scope[_REFUSAL])
