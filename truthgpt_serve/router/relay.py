"""Sends one request on to its model's application and its answer back, byte for byte, as they come.

Knows HTTP and OpenAI's error envelope; knows nothing of how a model was found.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import (
    DeadlineError,
    PassedError,
    TooLargeError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
)
from truthgpt_serve.router.catalogue import ModelEntry
from truthgpt_serve.router.responses import Receive, Scope, Send, send_error
from truthgpt_serve.router.upstream import (
    ConnectionPool,
    Headers,
    StaleConnectionError,
    UpstreamConnection,
)

logger = logging.getLogger(__name__)

# Headers of one hop (RFC 9110, 7.6.1), those that this hop writes itself, and one that would make
# Serve ignore a client that left.
_NOT_SENT_UP = frozenset(
    b"connection keep-alive proxy-connection proxy-authorization te trailer transfer-encoding "
    b"upgrade host content-length expect x-request-disconnect-disabled".split()
)
# `date`, `server` and `x-request-id` are added by our own server: they would be there twice.
_NOT_SENT_DOWN = frozenset(
    b"connection keep-alive proxy-authenticate trailer transfer-encoding upgrade date server "
    b"x-request-id".split()
)
_PROXY_ERROR_PAGE = b"Internal Server Error"
"""Body of the page by which Serve's proxy replaces its own 502, 503 and 504 (status 500)."""
_MAX_ERROR_BYTES = 65536
_HOLD_RECHECK_S = 2.0


@dataclass(slots=True)
class RequestBody:
    """What of the body has been read, and how to read the rest.

    Attributes:
        pieces: Read already.
        num_bytes: Their size.
        more: Whether there is a rest.
        receive: ASGI `receive`.
    """

    pieces: list[bytes]
    num_bytes: int
    more: bool
    receive: Receive


class ClientLeftError(Exception):
    """The client closed its connection; nobody reads an answer."""


class Relay:
    """Relays requests over one pool of connections to this node's proxy.

    Args:
        pool: Connections to the proxy.
        config: Timeouts and limits.
        is_running: Whether a model has a running replica, by name.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        config: RouterConfig,
        is_running: Callable[[str], bool],
    ) -> None:
        self._pool = pool
        self._config = config
        self._is_running = is_running
        self._host = f"host: {pool.host}:{pool.port}\r\n".encode()

    async def __call__(
        self, scope: Scope, send: Send, entry: ModelEntry, body: RequestBody
    ) -> None:
        """Relays one request.

        Raises:
            TruthGPTError: Before anything was sent to the client.
            BrokenAnswerError: The answer, not a stream of events, broke off: close the connection.
            ClientLeftError: The client left while it sent its body.
        """
        head = self._head(scope, entry, body)
        connection, upload = await self._open(head, entry, body)
        try:
            status, headers = await connection.headers()
            await self._answer(connection, status, headers, send, entry)
        except TruthGPTError:
            self._raise_upload_error(upload)
            raise
        finally:
            if upload is not None:
                upload.cancel()
            self._pool.release(connection)

    # -- request

    def _head(self, scope: Scope, entry: ModelEntry, body: RequestBody) -> bytes:
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string")
        lines = [scope["method"].encode(), b" ", entry.prefix, path]
        if query:
            lines += [b"?", query]
        lines += [b" HTTP/1.1\r\n", self._host]
        length = None
        for name, value in scope["headers"]:
            if name not in _NOT_SENT_UP:
                lines += [name, b": ", value, b"\r\n"]
            elif name == b"content-length":
                length = value
        if not body.more:
            lines.append(b"content-length: %d\r\n\r\n" % body.num_bytes)
        elif length is not None:
            lines += [b"content-length: ", length, b"\r\n\r\n"]
        else:
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        return b"".join(lines)

    async def _open(
        self, head: bytes, entry: ModelEntry, body: RequestBody
    ) -> tuple[UpstreamConnection, asyncio.Task[None] | None]:
        if body.more:  # what streams cannot be sent twice, so no kept connection that may be stale
            connection = await self._pool.acquire(fresh=True)
            self._set_deadline(connection, entry)
            return connection, asyncio.create_task(self._upload(connection, head, body))
        for fresh in (False, True):
            connection = await self._pool.acquire(fresh=fresh)
            try:
                self._set_deadline(connection, entry)
                connection.write(b"".join((head, *body.pieces)))
                await connection.headers()
            except StaleConnectionError:
                self._pool.release(connection)
            except BaseException:
                self._pool.release(connection)
                raise
            else:
                return connection, None
        raise UpstreamError("Serve's proxy closes its connections")

    async def _upload(self, connection: UpstreamConnection, head: bytes, body: RequestBody) -> None:
        chunked = head.endswith(b"transfer-encoding: chunked\r\n\r\n")
        connection.write(head)
        pieces, more = body.pieces, True
        try:
            while True:
                for piece in pieces:
                    if piece:
                        connection.write(
                            b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
                        )
                if not more:
                    break
                await connection.drain()
                message = await body.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                pieces, more = [message.get("body", b"")], message.get("more_body", False)
                body.num_bytes += len(pieces[0])
                check_size(body.num_bytes, self._config.max_body_bytes)
            if chunked:
                connection.write(b"0\r\n\r\n")
        except (TruthGPTError, ClientLeftError) as error:
            failure = (
                error if isinstance(error, TruthGPTError) else UpstreamError("the client left")
            )
            connection.fail(failure)
            raise

    @staticmethod
    def _raise_upload_error(upload: asyncio.Task[None] | None) -> None:
        if upload is not None and upload.done() and not upload.cancelled():
            error = upload.exception()
            if error is not None:
                raise error

    def _set_deadline(self, connection: UpstreamConnection, entry: ModelEntry) -> None:
        config = self._config
        started_s = time.monotonic()

        def on_deadline() -> TruthGPTError | float:
            waited_s = time.monotonic() - started_s
            if waited_s >= config.request_timeout_s:
                return DeadlineError(
                    f"The model {entry.name!r} did not finish within {config.request_timeout_s:g} s"
                )
            held = not connection.has_headers and not self._is_running(entry.name)
            if held and waited_s >= config.hold_timeout_s:
                return UnavailableError(
                    f"The model {entry.name!r} had no running replica for "
                    f"{config.hold_timeout_s:g} s",
                    retry_after_s=int(_HOLD_RECHECK_S) + 3,
                )
            rest_s = config.request_timeout_s - waited_s
            return rest_s if connection.has_headers else min(rest_s, _HOLD_RECHECK_S)

        connection.set_deadline(min(config.hold_timeout_s, config.request_timeout_s), on_deadline)

    # -- answer

    async def _answer(
        self,
        connection: UpstreamConnection,
        status: int,
        headers: Headers,
        send: Send,
        entry: ModelEntry,
    ) -> None:
        kept = [header for header in headers if header[0] not in _NOT_SENT_DOWN]
        content_type = next((value for name, value in kept if name == b"content-type"), b"")
        if status >= 400 and not content_type.startswith((b"application/", b"text/event-stream")):
            await self._translate_error(connection, status, kept, send, entry)
            return
        is_event_stream = content_type.startswith(b"text/event-stream")
        await send({"type": "http.response.start", "status": status, "headers": kept})
        last = b"\n\n"
        try:
            more = True
            while more:
                data, more = await connection.read()
                last = data or last
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TruthGPTError as error:
            if not is_event_stream:
                raise BrokenAnswerError(error.message) from error
            logger.warning("the stream of model %r broke off: %s", entry.name, error)
            gap = b"" if last.endswith(b"\n\n") else b"\n\n"
            event = gap + b"data: " + json.dumps(error.to_envelope()).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": False})

    async def _translate_error(
        self,
        connection: UpstreamConnection,
        status: int,
        headers: Headers,
        send: Send,
        entry: ModelEntry,
    ) -> None:
        text = b""
        more = True
        while more and len(text) < _MAX_ERROR_BYTES:
            data, more = await connection.read()
            text += data
        error = _as_error(status, text, entry, running=self._is_running(entry.name))
        retry_after = [header for header in headers if header[0] == b"retry-after"]
        await send_error(send, error, headers=retry_after)


class BrokenAnswerError(UpstreamError):
    """An answer broke off after its status: only closing the connection tells the client."""


def _as_error(status: int, text: bytes, entry: ModelEntry, *, running: bool) -> TruthGPTError:
    if status == 500 and text == _PROXY_ERROR_PAGE:
        if running:
            return UpstreamError(f"A replica of the model {entry.name!r} failed before it answered")
        return UnavailableError(f"The model {entry.name!r} has no running replica", retry_after_s=5)
    message = text.decode(errors="replace").strip() or f"the model answered with status {status}"
    return PassedError(status, message[:2000])


def check_size(num_bytes: int, max_body_bytes: int) -> None:
    """Raises TooLargeError for a body above the limit."""
    if num_bytes > max_body_bytes:
        raise TooLargeError(
            f"the request body is larger than {max_body_bytes} bytes, the limit that the router's "
            "`max_body_bytes` sets"
        )
