"""A body that is never taken is not read without end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from truthgpt_serve.replica.held_bodies import MARGIN_BYTES, HeldBodies


class Client:
    """Sends a body without end in pieces of 100 kB."""

    num_bytes = 0

    async def receive(self) -> Any:
        await asyncio.sleep(0)
        self.num_bytes += 100_000
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def send(self, message: Any) -> None:
        raise AssertionError(message)


async def read_all(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await receive()


async def test_reading_stops_behind_the_limit() -> None:
    client = Client()
    app = HeldBodies(read_all, 500_000)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await app({"type": "http"}, client.receive, client.send)
    assert 500_000 < client.num_bytes <= 500_000 + MARGIN_BYTES + 100_000


async def test_what_has_no_body_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(receive)

    client = Client()
    await HeldBodies(app, 1)({"type": "lifespan"}, client.receive, client.send)
    assert seen == [client.receive]
