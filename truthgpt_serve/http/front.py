"""The ASGI front of every application: kinds of connections, start and end, errors."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from truthgpt_serve.errors import ServerError, TruthGPTError, UnavailableError, UpstreamError
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.http.connection import ClientGoneError, Connection, refuse_websocket

logger = logging.getLogger(__name__)

Handler = Callable[[Connection], Awaitable[None]]
_EXPECTED = (UnavailableError, UpstreamError)
"""Errors that another place logs once, not once for each request."""


class Front(ABC):
    """An ASGI application: requests go to `serve`, the server's start and end to two methods."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one ASGI connection."""
        kind = scope["type"]
        if kind == "http":
            await self.serve(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await refuse_websocket(scope, receive, send)

    @abstractmethod
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

    async def start(self) -> None:  # noqa: B027 - most applications have nothing to start
        """Runs before the first request; what it raises ends the server."""

    async def stop(self) -> None:  # noqa: B027
        """Runs after the last request."""

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            try:
                await (self.stop() if kind == "lifespan.shutdown" else self.start())
            except Exception as error:
                logger.exception("%s failed", kind)
                await send({"type": f"{kind}.failed", "message": str(error)})
                return
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


class RoutedFront(Front):
    """A front whose errors are answered in the form of the request's API.

    Args:
        label: What fails when something fails, for messages: "the model 'm'".
        logged_label: The same for the log, by default `label`.
    """

    def __init__(self, label: str, logged_label: str | None = None) -> None:
        self._label = label
        self._logged_label = logged_label or label

    @abstractmethod
    def find(self, connection: Connection) -> Handler:
        """Returns the handler of a request.

        Raises:
            TruthGPTError: There is no such route, or not with this method.
        """

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        connection = Connection(scope, receive, send)
        try:
            await self.find(connection)(connection)
        except ClientGoneError:
            logger.debug("request %s: the client left", connection.request_id)
        except TruthGPTError as error:
            if isinstance(error, ServerError) and not isinstance(error, _EXPECTED):
                logger.error(
                    "request %s: %s", connection.request_id, error, exc_info=error.__cause__
                )
            await connection.fail(error)
        except Exception:
            request_id = connection.request_id
            logger.exception("request %s: %s failed", request_id, self._logged_label)
            message = f"{self._label} failed; its log has the cause under request id {request_id}"
            await connection.fail(ServerError(message))
