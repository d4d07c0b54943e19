"""uvicorn's protocol with mends: no chunks in HTTP/1.0, no trailers, no bodies of upgrades.

It also joins writes, and bounds what clients have not read.

uvicorn sends what has no length in chunks, which HTTP/1.0 does not know (nginx in its default
settings speaks it), and HAProxy passes them. This sends it as it is: the end of the connection is
the end of the answer (RFC 9112, 6.3).
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any, cast

from httptools.parser.errors import HttpParserInvalidMethodError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from truthgpt_serve.cluster.defaults import RAY_HEADERS
from truthgpt_serve.cluster.joined_writes import JoinedWrites, outbox_of
from truthgpt_serve.cluster.proxy_answers import below_mount
from truthgpt_serve.cluster.unread_answers import unread_answers_of
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.wording import hide_keys

LINGER_S = 2.0
"""How long a connection that is refused stays open for what its client still sends."""
_NO_UPGRADE = (
    "A request with `Upgrade` has no body, and one for a WebSocket is a GET: send it without "
    "`Upgrade`"
)
_match_method = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}+(?= )").match
"""At the beginning of a request, of the characters of RFC 9110, 5.6.2."""
_RAY_HEADERS = frozenset(name.encode() for name in RAY_HEADERS)
_REQUEST_ID = b"x-request-id"


class OldClientsProtocol(HttpToolsProtocol):
    """uvicorn's protocol; give it to `uvicorn.Config` as `http`."""

    _is_refused = False
    _received = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a new connection."""
        self._joined = JoinedWrites(transport, outbox_of(self.loop))
        self._unread = unread_answers_of(self.loop)
        super().connection_made(cast("asyncio.Transport", self._joined))

    def pause_writing(self) -> None:
        """Notes that the client does not read."""
        super().pause_writing()
        self._unread.add(self)

    def resume_writing(self) -> None:
        """Notes that the client reads again."""
        super().resume_writing()
        self._unread.discard(self)

    @property
    def is_whole(self) -> bool:
        """Whether nothing follows: the last answer is whole, or the connection is closing."""
        cycle = self.cycle
        return cycle is None or bool(cycle.response_complete) or self._joined.is_closing()

    @property
    def num_unread(self) -> int:
        """Bytes that wait for the client."""
        return self._joined.transport.get_write_buffer_size()

    def cut(self) -> None:
        """Ends the connection, and drops what waits for the client."""
        self._joined.transport.abort()

    def eof_received(self) -> None:
        """Sends what is held: the connection is closed then, and its client may still read."""
        self._joined.flush()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the connection, also one that was reset.

        uvicorn leaves the timer of such a one, and with it all of its objects for 90 s: HAProxy
        resets what it does not keep, and the garbage collector then has hundreds of thousands of
        objects to look through.
        """
        self._joined.end_holding(is_lost=True)
        self._unread.discard(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Takes what has come, unless the connection is about to end."""
        if not self._is_refused:
            self._received = data
            super().data_received(data)
            self._received = b""

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no request; says which method the parser does not know."""
        is_unknown = isinstance(sys.exception(), HttpParserInvalidMethodError)
        if is_unknown and (method := _match_method(self._received)):
            msg = f"{method[0].decode()} is not an HTTP method that this server knows"
        super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._has_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header. What stands behind a body is none (RFC 9110, 6.5.1).

        uvicorn adds such trailers to the headers, before the application sees those of a request
        that came at once: they could carry a key, or a limit, past whoever checked the head.
        Those for Ray Serve that it cannot read are left out, as HAProxy does. A key is no part of
        an id, which Ray Serve puts into each line that is logged for the request.
        """
        if len(name) == len(_REQUEST_ID) and name.lower() == _REQUEST_ID:
            value = hide_keys(value.decode("latin-1")).encode("latin-1")
        if not self._has_head and (value.isascii() or name.lower() not in _RAY_HEADERS):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts the request, which runs in a task a moment later.

        The parser passes over the body of one that asks for another protocol: uvicorn would wait
        for it for ever, or take it to be empty.
        """
        self._has_head = True
        if self.parser.should_upgrade() and self._must_refuse():
            self._refuse()
            return
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and type(self.cycle) is RequestResponseCycle:
            self.cycle.__class__ = _UnchunkedCycle

    def on_message_complete(self) -> None:
        """Ends the request."""
        if not self._is_refused:
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Gives the connection to the protocol of WebSockets, which is not asked before it ends."""
        self._joined.end_holding()
        self._unread.discard(self)
        super().handle_websocket_upgrade()

    def _must_refuse(self) -> bool:
        fields = dict(self.headers)
        has_body = fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields
        return has_body or (self.parser.get_method() != b"GET" and self._should_upgrade())

    def _should_upgrade(self) -> bool:
        return not self._is_refused and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        if not self._is_refused:
            super()._unsupported_upgrade_warning()

    def _refuse(self) -> None:
        """Answers, and leaves the connection open until the client may have read that."""
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # of the request before: the connection ends with it
            return
        path = below_mount(self.url.partition(b"?")[0].decode("latin-1"))
        body = encode_json(error_body(RequestError(_NO_UPGRADE), path))
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"access-control-allow-origin: *\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % len(body) + body)
        self.loop.call_later(LINGER_S, self.transport.close)


class _UnchunkedCycle(RequestResponseCycle):
    """One request of HTTP/1.0; uvicorn closes its connection after the answer."""

    until_end = False

    async def send(self, message: Any) -> None:
        """Sends the next part of the answer."""
        if message["type"] == "http.response.start":
            message = self._unframed(message)
        elif self.until_end and not message.get("more_body", False):
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def _unframed(self, start: Any) -> Any:
        """Returns the start of an answer; one without a length is then taken to be endless."""
        headers = [(name.lower(), value) for name, value in start.get("headers", ())]
        if any(name == b"content-length" for name, _ in headers):
            return start
        self.until_end = True
        self.chunked_encoding, self.expected_content_length = False, sys.maxsize
        return {**start, "headers": [line for line in headers if line[0] != b"transfer-encoding"]}
