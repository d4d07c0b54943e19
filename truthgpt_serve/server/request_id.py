"""Keeps `x-request-id` single: Ray Serve adds the header to every answer of an application.

The id that Serve adds is the one in the request, so nothing is lost by leaving the other away.
"""

from __future__ import annotations

from typing import Any

from truthgpt_serve.asgi import Message, Receive, Scope, Send

_NAME = b"x-request-id"


class ServeRequestId:
    """An ASGI application whose answers leave `x-request-id` to Ray Serve.

    Args:
        app: The application; alone, without Serve, it may set the header itself.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""

        async def send_once(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if any(name.lower() == _NAME for name, _ in headers):
                    kept = [header for header in headers if header[0].lower() != _NAME]
                    message = {**message, "headers": kept}
            await send(message)

        await self._app(scope, receive, send_once if scope["type"] == "http" else send)
