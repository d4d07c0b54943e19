"""A request to the application in the same process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from deployments.vllm.application.local_request import LocalRequest


async def test_leaving_a_local_request_is_a_disconnect() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.set()

    async with LocalRequest(app, "/", {}, "id") as request:
        assert await request.status() == 200
    await asyncio.wait_for(ended.wait(), 1)


async def test_local_request_raises_what_the_application_raises() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async with LocalRequest(app, "/", {}, "id") as request:
        with pytest.raises(ZeroDivisionError):
            await request.status()
