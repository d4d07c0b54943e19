"""Under Ray Serve, which adds `x-request-id` to every answer, an application's own one goes."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest

from truthgpt_serve.server.request_id import ServeRequestId

Message = MutableMapping[str, Any]


@pytest.mark.parametrize("name", [b"x-request-id", b"X-Request-Id"])
async def test_the_applications_own_header_goes(name: bytes) -> None:
    sent: list[Message] = []
    headers = [(b"content-type", b"text/plain"), (name, b"abc")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await ServeRequestId(app)({"type": "http"}, receive, send)
    assert sent[0]["headers"] == [(b"content-type", b"text/plain")]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
    assert len(headers) == 2


async def test_other_connections_pass_untouched() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope, receive, send) == ({"type": "lifespan"}, 1, 2)

    await ServeRequestId(app)({"type": "lifespan"}, 1, 2)  # type: ignore[arg-type]  # no functions: it must not call them
