"""The router's ASGI application: its own routes, and all else to the model that is named.

Knows the routes; how a model is found is the catalogue's, how bytes travel the relay's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    RouteNotFoundError,
    ServerError,
    SlowRequestError,
    TruthGPTError,
    UnavailableError,
)
from truthgpt_serve.router.catalogue import Catalogue
from truthgpt_serve.router.pages import Pages
from truthgpt_serve.router.pool import ConnectionPool
from truthgpt_serve.router.relay import BrokenAnswerError, Relay
from truthgpt_serve.router.responses import Message, Receive, Scope, Send, send_error
from truthgpt_serve.router.scan import ModelScanner, model_of_json, scanner_for
from truthgpt_serve.router.upload import ClientLeftError, RequestBody, check_size
from truthgpt_serve.serve_state import ServeState, metrics_address

logger = logging.getLogger(__name__)

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


class RouterApp:
    """Relays `POST` requests by their `model`; answers the few routes of the service itself.

    Args:
        config: Limits and timeouts.
        fetch_state: Asks Serve's controller (`serve_state.fetch_serve_state`).
        proxy_port: Port of Serve's proxy on this node.
    """

    def __init__(
        self, config: RouterConfig, fetch_state: Callable[[], ServeState], proxy_port: int
    ) -> None:
        self._config = config
        self._pool = ConnectionPool(
            "127.0.0.1", proxy_port, connect_timeout_s=config.connect_timeout_s
        )
        self._exporter: ConnectionPool | None = None
        self.catalogue = Catalogue(fetch_state, self._fetch_routes)
        self._relay = Relay(
            self._pool, config, self.catalogue.is_running, self.catalogue.is_draining
        )
        self._pages = Pages(self.catalogue, self._fetch_metrics)

    async def _close(self) -> None:
        await self.catalogue.stop()
        self._pool.close()
        if self._exporter is not None:
            self._exporter.close()

    async def _fetch_routes(self) -> bytes:
        return await self._pool.fetch(b"/-/routes")

    async def _fetch_metrics(self) -> bytes:
        """Reads the metrics exporter of this node."""
        if self._exporter is None:
            address = await asyncio.to_thread(metrics_address)
            if address is None:
                raise UnavailableError("this node has no metrics exporter", retry_after_s=30)
            self._exporter = ConnectionPool(
                *address, connect_timeout_s=self._config.connect_timeout_s
            )
        return await self._exporter.fetch(b"/metrics")

    # -- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection; the lifespan's start and end are the router's."""
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        elif scope["type"] == "websocket":
            # Before `accept` this is an HTTP 403: the client learns at once that there are none.
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "no WebSockets here"})
        else:
            await self._serve_lifespan(receive, send)

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.catalogue.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            page = self._pages.find(scope["method"], scope["path"])
            if page is not None:
                await page(send)
            else:
                await self._route(scope, receive, send)
        except BrokenAnswerError as error:
            logger.warning("%s", error)
            raise
        except ClientLeftError:
            return
        except TruthGPTError as error:
            await send_error(send, error)
        except Exception:
            logger.exception("the router failed")
            await send_error(send, ServerError("the router failed; its log says why"))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith("/models/"):
            # A name without an application falls through to here: relayed, it would come back.
            name = path.removeprefix("/models/").partition("/")[0]
            raise ModelNotFoundError(f"The model {name!r} does not exist", param="model")
        if scope["method"] not in _BODY_METHODS:
            raise _no_route(scope["method"], path)
        model, body = await self._read_model(scope, receive)
        entry = await self.catalogue.resolve(model)
        await self._relay(scope, send, entry, body)

    async def _read_model(self, scope: Scope, receive: Receive) -> tuple[str, RequestBody]:
        content_type = length = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
        limit = self._config.max_body_bytes
        if length.isdigit():
            check_size(int(length), limit)
        body = RequestBody([], 0, True, receive)
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                piece = _take(await receive(), body)
                if body.more or content_type[:10].lower() == b"multipart/":
                    return await _scan(scanner_for(content_type), piece, body, limit), body
        except TimeoutError:
            raise SlowRequestError(
                f"the request body did not arrive within {self._config.request_timeout_s:g} s"
            ) from None
        check_size(body.num_bytes, limit)
        return model_of_json(piece), body


async def _scan(scanner: ModelScanner, piece: bytes, body: RequestBody, limit: int) -> str:
    while True:
        check_size(body.num_bytes, limit)
        model = scanner.feed(piece)
        if model is not None:
            return model
        if not body.more:
            return scanner.finish(body.pieces)
        piece = _take(await body.receive(), body)


def _take(message: Message, body: RequestBody) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    piece: bytes = message.get("body", b"")
    body.pieces.append(piece)
    body.num_bytes += len(piece)
    body.more = message.get("more_body", False)
    return piece


def _no_route(method: str, path: str) -> TruthGPTError:
    if path.startswith(("/v1/", "/v2/")):
        return MethodError(f"{path} takes POST with a `model` in its body, not {method}")
    return RouteNotFoundError(f"there is no {path} here; the routes are listed at /docs")
