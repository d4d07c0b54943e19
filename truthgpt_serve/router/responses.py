"""The ASGI types that the router uses, and its two kinds of own answers: JSON and errors.

Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from truthgpt_serve.errors import TruthGPTError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


async def send_json(
    send: Send, value: Any, *, status: int = 200, headers: Headers | None = None
) -> None:
    """Sends a whole JSON answer."""
    await send_bytes(
        send, json.dumps(value).encode(), b"application/json", status=status, headers=headers
    )


async def send_bytes(
    send: Send,
    body: bytes,
    content_type: bytes,
    *,
    status: int = 200,
    headers: Headers | None = None,
) -> None:
    """Sends a whole answer of any type."""
    lines = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: TruthGPTError, *, headers: Headers | None = None) -> None:
    """Sends an error in OpenAI's envelope."""
    lines = list(headers or [])
    if error.retry_after_s is not None and not lines:
        lines.append((b"retry-after", b"%d" % error.retry_after_s))
    await send_json(send, error.to_envelope(), status=error.status, headers=lines)
