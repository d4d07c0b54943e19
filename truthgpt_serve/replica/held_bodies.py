"""Reads no more of a body than may be in memory while its request waits.

Ray Serve's server reads a body as it comes, also while nobody takes it: a request that waits for
its turn would hold whatever its client sends.
"""

from __future__ import annotations

import asyncio
from typing import Any

from truthgpt_serve.http.asgi import Message, Receive, Scope, Send

MARGIN_BYTES = 1 << 20
"""Read beyond the limit, so that whoever takes the body finds it too long and says so."""


class HeldBodies:
    """An application whose requests' bodies are read up to a limit, and then no further.

    Args:
        app: The application.
        max_body_bytes: The longest body that it takes.
    """

    def __init__(self, app: Any, max_body_bytes: int) -> None:
        self._app = app
        self._limit = max_body_bytes + MARGIN_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def receive_held() -> Message:
            nonlocal num_bytes
            if num_bytes > self._limit:
                # The client waits, too: its connection is full. Whoever asks is cancelled in time.
                await asyncio.get_running_loop().create_future()
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message

        await self._app(scope, receive_held, send)
