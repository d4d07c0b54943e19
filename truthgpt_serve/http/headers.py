"""Says which headers pass a hop, and changes the heads of an application's answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from truthgpt_serve.http.asgi import Headers, Message, Receive, Scope, Send

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    b"transfer-encoding upgrade".split()
)
"""RFC 9110, 7.6.1: they belong to one connection."""

NOT_OF_APPLICATIONS = HOP_BY_HOP.union((b"date", b"server", b"x-request-id"))
"""Headers of answers that our own HTTP servers and Ray Serve add: they would be there twice."""

BODY_HEADERS = frozenset((b"content-length", b"content-type", b"transfer-encoding"))
"""What says how a body is sent: another body has its own."""

Edit = Callable[[Headers], Headers]
"""Takes an answer's headers, names in lower case, and returns those that go out."""


class EditedHeads:
    """An ASGI application whose answers have other headers.

    Args:
        app: The application.
        edits: Change the headers, one after the other.
    """

    def __init__(self, app: Any, *edits: Edit) -> None:
        self._app = app
        self._edits = edits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""

        # Without a coroutine of its own, which each piece of a stream would pay for.
        def send_edited(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = lower_case(message)
                for edit in self._edits:
                    headers = edit(headers)
                message = {**message, "headers": headers}
            return send(message)

        await self._app(scope, receive, send_edited if scope["type"] == "http" else send)


def end_to_end(headers: Headers, dropped: frozenset[bytes] = HOP_BY_HOP) -> Headers:
    """Returns the headers that pass this hop: not those `dropped`, nor what `connection` names.

    Args:
        headers: Of a request or an answer, names in lower case.
        dropped: Names in lower case; `HOP_BY_HOP` and what else this hop leaves out.
    """
    for name, value in headers:
        if name == b"connection" and (value := value.lower()) not in (b"close", b"keep-alive"):
            dropped = dropped.union(word.strip() for word in value.split(b","))
    return [header for header in headers if header[0] not in dropped]


def lower_case(start: Message) -> Headers:
    """Returns the headers of an answer's start with their names in lower case."""
    return [(bytes(name).lower(), bytes(value)) for name, value in start.get("headers", ())]


def of_application(headers: Headers) -> Headers:
    """Returns the headers of an answer that are not the server's to add."""
    return end_to_end(headers, NOT_OF_APPLICATIONS)
