"""The router's ASGI application: its own routes, and all else to the model that is named.

`discovery` finds the model, `relay` passes the bytes on.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from pathlib import Path

from truthgpt_serve.access.identity import identity_of
from truthgpt_serve.cluster.controller import metrics_address
from truthgpt_serve.cluster.haproxy.affinity import affinity_news
from truthgpt_serve.cluster.haproxy.credentials import keyed_news
from truthgpt_serve.cluster.haproxy.limits import CAPACITY_HEADER, KEYED_HEADER
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    RequestError,
    RouteNotFoundError,
    ServerError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
)
from truthgpt_serve.http.asgi import Headers, Receive, Scope, Send, send_error
from truthgpt_serve.http.file_store import FileStore
from truthgpt_serve.http.front import Front
from truthgpt_serve.http.retriable import HEADER, RETRY_AFTER_S
from truthgpt_serve.http.routes import find_error, shown_path
from truthgpt_serve.router.admission import Admission
from truthgpt_serve.router.affinity import affinity_by_model
from truthgpt_serve.router.allowed import AllowedModels
from truthgpt_serve.router.backend_info import BackendInfo
from truthgpt_serve.router.bodies.request_body import (
    BODY_METHODS,
    BodyReader,
    ClientLeftError,
    RequestBody,
    is_encoded,
)
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.model_table import MODELS_PREFIX
from truthgpt_serve.router.open_inference import model_of
from truthgpt_serve.router.pool import ConnectionPool
from truthgpt_serve.router.relay import BrokenAnswerError, Relay
from truthgpt_serve.router.room import capacity, held_by_model, is_keyed
from truthgpt_serve.router.routes import RouterRoutes
from truthgpt_serve.router.usage import Fetch, UsageRoute
from truthgpt_serve.router.waiting.claims import Claimant, claimant_of
from truthgpt_serve.telemetry.record import record_of

logger = logging.getLogger(__name__)


class RouterApp(Front):
    """Relays `POST` requests by their `model`; answers the few routes of the service itself.

    Args:
        config: Limits and timeouts.
        fetch_state: Asks Serve's controller (`serve_state.fetch_serve_state`).
        proxy: Host and port at which this node reaches Serve's proxy.
        find_exporter: Returns host and port of this node's metrics exporter; runs in a thread.
        files: Where models put results that clients fetch by address, or None.
        socket: The proxy's own way in for this node's routers, or None.
        internal_headers: Returns the headers with which it asks models for itself.
        fetch_usage: Asks what the keys used, and blocks; None where the service asks for none.
    """

    def __init__(
        self,
        config: RouterConfig,
        fetch_state: Callable[[], ServeState],
        proxy: tuple[str, int],
        find_exporter: Callable[[], tuple[str, int] | None] = metrics_address,
        files: FileStore | None = None,
        socket: Path | None = None,
        internal_headers: Callable[[], Headers] = list,
        fetch_usage: Fetch | None = None,
    ) -> None:
        self._config = config
        self._internal_headers = internal_headers
        self._pool = ConnectionPool(
            *proxy, connect_timeout_s=config.connect_timeout_s, socket=socket
        )
        self._find_exporter = find_exporter
        self._exporter: ConnectionPool | None = None
        self.directory = ModelDirectory(fetch_state, self._fetch_routes)
        self._bodies = BodyReader(config)
        self._num_routers = config.num_replicas or 1
        self._admission = Admission(self._num_routers, self._find_claimant)
        self._has_haproxy = socket is not None
        self._client_header = config.client_header.encode() if config.client_header else None
        models = self.directory
        self._relay = Relay(
            self._pool,
            config,
            models.is_running,
            models.is_draining,
            models.confirm,
            self._admission.note_place,
        )
        self._backend_info = BackendInfo(self.directory, self._fetch_of_model)
        self._routes = RouterRoutes(
            self.directory,
            self._backend_info,
            self._fetch_metrics,
            self._pool.fetch,
            files,
            UsageRoute(fetch_usage),
        )

    def _find_claimant(self, scope: Scope | None) -> Claimant:
        return claimant_of(scope, self._is_haproxy, self._client_header)

    def _is_haproxy(self, host: str) -> bool:
        """Returns whether HAProxy may be there: a replica's port takes requests of others too."""
        if not self._has_haproxy:
            return False
        return host.startswith("127.") or host == "::1" or host in self.directory.node_hosts

    async def _fetch_routes(self) -> bytes:
        entries = self.directory.entries()
        keyed = {entry.name: is_keyed(entry) for entry in entries if entry.is_model}
        held = capacity(entries)
        told = []
        if held is not None:
            # What still arrives is in HAProxy's count, and at no model; the others have as much.
            held += self._bodies.arrivals.num_arriving * self._num_routers
            told = [
                (CAPACITY_HEADER.encode(), b"%d" % held),
                (KEYED_HEADER.encode(), b"%d" % (bool(keyed) and all(keyed.values()))),
            ]
        query = news_query(
            self._config.max_body_bytes if self._config.direct else 0,
            held_by_model(entries, self._config.request_timeout_s),
            {
                **affinity_news(affinity_by_model(entries)),
                **keyed_news(name for name, asks in keyed.items() if asks),
            },
        )
        path = f"{NEWS_PATH}?{query}" if self.directory.loaded else NEWS_PATH
        _, routes = await self._pool.fetch(path.encode(), told)
        return routes

    async def _fetch_of_model(self, path: bytes) -> tuple[int, bytes]:
        return await self._pool.fetch(path, self._internal_headers())

    async def _fetch_metrics(self) -> bytes:
        """Reads the metrics exporter of this node. Raises TruthGPTError when it fails."""
        if self._exporter is None:
            address = await asyncio.to_thread(self._find_exporter)
            if address is None:
                raise UnavailableError("this node has no metrics exporter", retry_after_s=30)
            self._exporter = ConnectionPool(
                *address,
                connect_timeout_s=self._config.connect_timeout_s,
                peer="this node's metrics exporter",
            )
        status, metrics = await self._exporter.fetch(b"/metrics")
        if status != 200:
            raise UpstreamError(f"this node's metrics exporter answered with status {status}")
        return metrics

    async def start(self) -> None:
        """Begins to follow the applications."""
        await self.directory.start()

    async def stop(self) -> None:
        """Ends what follows them, and the connections."""
        await self._routes.start_page.stop()
        await self._backend_info.stop()
        await self.directory.stop()
        self._pool.close()
        if self._exporter is not None:
            self._exporter.close()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        try:
            identity = identity_of(scope)
            query = scope.get("query_string") or b""
            handler = self._routes.find(scope["method"], scope["path"], identity, query)
            if handler is not None:
                await handler(send)
            elif scope["path"].startswith(MODELS_PREFIX):
                await self._send_unreached(scope, send)
            elif is_encoded(scope):
                async with self._bodies.decoded(scope, receive) as (plain, receive_plain):
                    await self._route(plain, receive_plain, send)
            else:
                await self._route(scope, receive, send)
        except BrokenAnswerError as error:
            logger.warning("%s", error)
            raise
        except ClientLeftError:
            return
        except TruthGPTError as error:
            await send_error(send, error, path=scope["path"])
        except Exception:
            logger.exception("the router failed")
            failure = ServerError("the router failed; its log says why")
            await send_error(send, failure, path=scope["path"])

    async def _send_unreached(self, scope: Scope, send: Send) -> None:
        """Answers what was meant for a model, and came here because the proxy knows none there.

        Relayed, it would come back. The proxies compare an address byte by byte, so one that is
        written in another way than its model's never leads to it.
        """
        path: str = scope["path"]
        models = AllowedModels(self.directory, identity_of(scope))
        name, rest = models.split(path.removeprefix(MODELS_PREFIX))
        written = scope.get("raw_path") or path.encode()
        is_plain = re.match(rb"%b(?![^/])" % re.escape(f"{MODELS_PREFIX}{name}".encode()), written)
        known = self.directory.find(name)
        error: TruthGPTError
        try:
            if not is_plain and (known is None or known.is_model):
                shown = shown_path(written.decode("latin-1"))
                raise RouteNotFoundError(
                    f"there is no {shown} here: a model's address is {MODELS_PREFIX}NAME, in which "
                    "nothing is percent-encoded"
                )
            entry = await models.resolve(name)
            if not entry.is_model:
                kind = "an adapter" if entry.alias_of is None else "an alias"
                raise ModelNotFoundError(
                    f"{name!r} is {kind}: its address is {MODELS_PREFIX}{entry.application}",
                    param="model",
                )
            try:  # by news not older than a second: it may have been removed
                await self.directory.confirm(name)
            except ModelNotFoundError as gone:
                raise models.worded(gone, name) from None
            message = f"The model {name!r} is being mounted; try again in a few seconds"
            error = UnavailableError(message, retry_after_s=RETRY_AFTER_S)
        except TruthGPTError as reason:
            error = reason
        await send_error(send, error, headers=[HEADER], path=rest)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        missing = find_error(scope["method"], path, "service")
        if isinstance(missing, MethodError):
            raise missing
        if (model := model_of(scope["method"], path)) is not None:
            await self._forward(scope, send, model, await self._bodies.take_unread(scope, receive))
            return
        only = self.directory.only_model()
        if only and missing and find_error(scope["method"], path, "model") is None:
            await self._forward(scope, send, only, await self._bodies.take_unread(scope, receive))
            return
        if missing is not None and scope["method"] not in BODY_METHODS:
            raise missing
        try:
            model, body = await self._bodies.read_model(scope, receive, only)
        except RequestError as error:
            # A path that is not in the list may be one of an application of a user's own, but
            # only a model can say so.
            if missing is None or error.status != RequestError.status:
                raise
            raise missing from None
        await self._forward(scope, send, model, body)

    async def _forward(self, scope: Scope, send: Send, model: str, body: RequestBody) -> None:
        models = AllowedModels(self.directory, identity_of(scope))
        entry = await models.resolve(model)
        if (record := record_of(scope)) is not None:
            record.model = entry.name
        try:
            if scope["method"] not in BODY_METHODS:  # it asks about the model, which costs little
                await self._relay(scope, send, entry, body)
                return
            if body.more:
                await self._bodies.gather(body)
            async with self._admission.admit(entry, scope):
                await self._relay(scope, send, entry, body)
        except ModelNotFoundError as gone:  # it was removed while the request waited
            raise models.worded(gone, model) from None
        finally:
            body.release()
