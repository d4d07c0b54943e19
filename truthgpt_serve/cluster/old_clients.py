"""uvicorn's protocol with mends: no chunks in HTTP/1.0, no trailers or unreadable headers.

uvicorn sends what has no length in chunks, which HTTP/1.0 does not know (nginx in its default
settings speaks it), and HAProxy passes them. This sends it as it is: the end of the connection is
the end of the answer (RFC 9112, 6.3).
"""

from __future__ import annotations

import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from truthgpt_serve.cluster.defaults import RAY_HEADERS

_RAY_HEADERS = frozenset(name.encode() for name in RAY_HEADERS)


class OldClientsProtocol(HttpToolsProtocol):
    """uvicorn's protocol; give it to `uvicorn.Config` as `http`."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the connection, also one that was reset.

        uvicorn leaves the timer of such a one, and with it all of its objects for 90 s: HAProxy
        resets what it does not keep, and the garbage collector then has hundreds of thousands of
        objects to look through.
        """
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._has_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header. What stands behind a body is none (RFC 9110, 6.5.1).

        uvicorn adds such trailers to the headers, before the application sees those of a request
        that came at once: they could carry a key, or a limit, past whoever checked the head.
        Those for Ray Serve that it cannot read are left out, as HAProxy does.
        """
        if not self._has_head and (value.isascii() or name.lower() not in _RAY_HEADERS):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Starts the request, which runs in a task a moment later."""
        self._has_head = True
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and type(self.cycle) is RequestResponseCycle:
            self.cycle.__class__ = _UnchunkedCycle


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
