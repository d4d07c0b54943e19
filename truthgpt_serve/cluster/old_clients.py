"""Answers HTTP/1.0 clients, nginx in its default settings among them, without chunks.

uvicorn sends what has no length in chunks, which HTTP/1.0 does not know, and HAProxy passes them.
This sends it as it is: the end of the connection is the end of the answer (RFC 9112, 6.3).
"""

from __future__ import annotations

import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


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

    def on_headers_complete(self) -> None:
        """Starts the request, which runs in a task a moment later."""
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
