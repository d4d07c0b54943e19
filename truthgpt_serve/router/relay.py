"""Relays one request to its model's application and the answer back, byte for byte."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import TruthGPTError, UnavailableError, UpstreamError
from truthgpt_serve.http.asgi import UNREAD_TIMEOUT_S, Headers, Scope, Send, header, send_error
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.foreign_errors import MAX_ERROR_BYTES, may_be_foreign, read_proxied_error
from truthgpt_serve.http.headers import HOP_BY_HOP, end_to_end, of_application
from truthgpt_serve.http.retriable import RETRY_AFTER_S, is_unreached
from truthgpt_serve.http.sse import CONTENT_TYPE, WholeEvents, with_stream_headers
from truthgpt_serve.queue_full import CLIENT_HEADER, PLACE_HEADER
from truthgpt_serve.router.affinity import affinity_headers
from truthgpt_serve.router.bodies.request_body import RequestBody
from truthgpt_serve.router.bodies.upload import upload
from truthgpt_serve.router.deadline import Deadline
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.pool import ConnectionPool
from truthgpt_serve.router.upstream import UpstreamConnection
from truthgpt_serve.telemetry.record import record_of
from truthgpt_serve.usage.counted import note_break

logger = logging.getLogger(__name__)

# The last but one would make Serve ignore a client that left, and the last is for this hop, which
# writes the others itself.
_NOT_SENT_UP = HOP_BY_HOP.union(
    (
        *(b"host", b"content-length", b"expect", b"x-request-disconnect-disabled"),
        CLIENT_HEADER.encode(),
    )
)
_KEPT_OF_ERRORS = frozenset((b"retry-after", b"allow", b"www-authenticate"))
"""Headers of an error that stay when its body is written anew."""
_PLACE_HEADER = PLACE_HEADER.encode()
_ATTEMPTS = ((False, 0.0), (True, 0.0), (True, 0.1), (True, 0.3), (True, 0.8))
"""Whether only a new connection will do, and seconds before it: for requests that reached no model.

Only an answer with the mark says so. A connection that ends without an answer does not: the proxy
closes it in silence when a replica died of the request.
"""


class Relay:
    """Relays requests over one pool of connections to this node's proxy.

    Args:
        pool: Connections to the proxy.
        config: Timeouts and limits.
        is_running: Whether a model has a running replica, by name.
        is_draining: Whether it has one that only finishes what it has.
        confirm: Asks whether a model that was not reached is still there; raises if not.
        note_place: Is told of a model how fast places come, as its answer says.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        config: RouterConfig,
        is_running: Callable[[str], bool],
        is_draining: Callable[[str], bool],
        confirm: Callable[[str], Awaitable[None]],
        note_place: Callable[[ModelEntry, bytes], None] = lambda entry, place: None,
    ) -> None:
        self._pool = pool
        self._config = config
        self._is_running = is_running
        self._is_draining = is_draining
        self._confirm = confirm
        self._note_place = note_place
        self._host = f"host: {pool.authority}\r\n".encode()

    async def __call__(
        self, scope: Scope, send: Send, entry: ModelEntry, body: RequestBody
    ) -> None:
        """Relays one request.

        Raises:
            TruthGPTError: Before anything was sent to the client.
            BrokenAnswerError: The answer, not a stream of events, broke off, or the client does not
                read it: close the connection.
            ClientLeftError: The client left while it sent its body.
        """
        try:
            async with asyncio.timeout(None) as patience:
                await self._exchange(scope, send, entry, body, patience)
        except TimeoutError:
            raise BrokenAnswerError(
                f"the client of model {entry.name!r} did not read its answer within "
                f"{UNREAD_TIMEOUT_S:g} s after the time limit"
            ) from None

    async def _exchange(
        self,
        scope: Scope,
        send: Send,
        entry: ModelEntry,
        body: RequestBody,
        patience: asyncio.Timeout,
    ) -> None:
        head = self._head(scope, entry, body)
        connection, uploading = await self._open(head, entry, body, patience)
        try:
            status, headers = await connection.headers()
            if is_unreached(headers):
                await self._confirm(entry.name)
                raise self._unreached(entry)
            await self._answer(connection, status, headers, scope, send, entry)
        except BrokenAnswerError:
            raise
        except TruthGPTError:
            self._raise_upload_error(uploading)
            raise
        finally:
            if uploading is not None:
                uploading.cancel()
            self._pool.release(connection)

    # -- request

    def _head(self, scope: Scope, entry: ModelEntry, body: RequestBody) -> bytes:
        """Returns the request's first lines.

        A model's answer may hold addresses, so it is told how the client reaches this router. What
        a proxy in front has said stays: it knows better. A client that says so itself misleads
        only itself.
        """
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope.get("query_string")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the server cuts the body
        lines = [method.encode(), b" ", entry.prefix, path]
        if query:
            lines += [b"?", query]
        lines += [b" HTTP/1.1\r\n", self._host]
        given = dict(scope["headers"])
        origin = {
            b"x-forwarded-host": given.get(b"host", b""),
            b"x-forwarded-proto": scope.get("scheme", "http").encode(),
            b"x-forwarded-prefix": b"/",
        }
        given_on = end_to_end(scope["headers"], _NOT_SENT_UP)
        for name, value in (*given_on, *affinity_headers(entry, body)):
            lines += [name, b": ", value, b"\r\n"]
        for name, value in origin.items():
            if value and name not in given:
                lines += [name, b": ", value, b"\r\n"]
        if not body.more:
            lines.append(b"content-length: %d\r\n\r\n" % body.num_bytes)
        elif b"content-length" in given:
            lines += [b"content-length: ", given[b"content-length"], b"\r\n\r\n"]
        else:
            lines.append(b"transfer-encoding: chunked\r\n\r\n")
        return b"".join(lines)

    async def _open(
        self, head: bytes, entry: ModelEntry, body: RequestBody, patience: asyncio.Timeout
    ) -> tuple[UpstreamConnection, asyncio.Task[None] | None]:
        if body.more:  # what streams cannot be sent twice, should a kept connection be at its end
            connection = await self._pool.acquire(fresh=True)
            self._set_deadline(connection, entry, patience)
            uploading = asyncio.create_task(
                upload(connection, head, body, self._config.max_body_bytes)
            )
            uploading.add_done_callback(_retrieve)
            return connection, uploading
        message = b"".join((head, *body.pieces))
        for fresh, pause_s in _ATTEMPTS:
            if pause_s:  # even a sleep of nothing costs each request a turn of the event loop
                await asyncio.sleep(pause_s)
            connection = await self._pool.acquire(fresh=fresh)
            try:
                self._set_deadline(connection, entry, patience)
                connection.write(message)
                _, headers = await connection.headers()
            except BaseException:
                self._pool.release(connection)
                raise
            if not is_unreached(headers):
                body.sent()
                return connection, None
            self._pool.release(connection)
            self._pool.close()  # the others lead to the same proxy
            if fresh:
                await self._confirm(entry.name)
            if fresh and not self._is_running(entry.name):
                break
        raise self._unreached(entry)

    def _unreached(self, entry: ModelEntry) -> UnavailableError:
        running = self._is_running(entry.name)
        state = "takes no requests yet" if running else "has no running replica"
        return UnavailableError(
            f"The model {entry.name!r} {state}; try again in a few seconds",
            retry_after_s=RETRY_AFTER_S if running else 5,
        )

    @staticmethod
    def _raise_upload_error(uploading: asyncio.Task[None] | None) -> None:
        if uploading is not None and uploading.done() and not uploading.cancelled():
            error = uploading.exception()
            if error is not None:
                raise error

    def _set_deadline(
        self, connection: UpstreamConnection, entry: ModelEntry, patience: asyncio.Timeout
    ) -> None:
        Deadline(
            connection, entry.name, self._config, self._is_running, self._is_draining, patience
        ).set()

    # -- answer

    async def _answer(
        self,
        connection: UpstreamConnection,
        status: int,
        headers: Headers,
        scope: Scope,
        send: Send,
        entry: ModelEntry,
    ) -> None:
        kept = with_stream_headers(of_application(headers))
        if (place := header(kept, _PLACE_HEADER)) is not None:
            self._note_place(entry, place)
            kept = [line for line in kept if line[0] != _PLACE_HEADER]
        content_type = header(kept, b"content-type") or b""
        data, more = b"", True
        if may_be_foreign(status, kept):
            while more and len(data) <= MAX_ERROR_BYTES:
                piece, more = await connection.read()
                data += piece
            error = None
            if len(data) <= MAX_ERROR_BYTES:
                error = read_proxied_error(
                    status,
                    data,
                    method=scope["method"],
                    path=scope["path"],
                    model=entry.name,
                    running=self._is_running(entry.name),
                )
            if error is not None:
                lines = [line for line in kept if line[0] in _KEPT_OF_ERRORS]
                await send_error(send, error, headers=lines, path=scope["path"])
                return
        if (record := record_of(scope)) is not None:
            record.is_relayed = True
        await send({"type": "http.response.start", "status": status, "headers": kept})
        if data or not more:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        if more:
            events = WholeEvents() if content_type.startswith(CONTENT_TYPE) else None
            await self._pass_on(connection, send, entry, events, scope["path"])

    async def _pass_on(
        self,
        connection: UpstreamConnection,
        send: Send,
        entry: ModelEntry,
        events: WholeEvents | None,
        path: str,
    ) -> None:
        more = True
        try:
            while more:
                data, more = await connection.read()
                if events is not None:
                    data = events.feed(data) if more else events.feed(data) + events.finish()
                    if more and not data:
                        continue
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TruthGPTError as error:
            note_break()
            if events is None or not events.between:  # another event cannot begin within one
                raise BrokenAnswerError(error.message) from error
            logger.warning("the stream of model %r broke off: %s", entry.name, error)
            event = error_event(error, path)
            await send({"type": "http.response.body", "body": event, "more_body": False})


def _retrieve(task: asyncio.Task[None]) -> None:
    """Has asyncio not report the failure of an upload whose answer was already there."""
    if not task.cancelled():
        task.exception()


class BrokenAnswerError(UpstreamError):
    """An answer broke off after its status: only closing the connection tells the client."""
