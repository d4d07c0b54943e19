"""A model that is removed while a request for it is on its way does not exist any more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.servers import serve_asgi
from tests.unit.router.test_discovery import application, state
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_bytes
from truthgpt_serve.http.retriable import HEADER
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.discovery import MIN_REFRESH_PERIOD_S

BEFORE = state(application("m"), application("other"))
DELETING = state(application("m", status="DELETING"), application("other"))
GONE = state(application("other"))
HIDDEN = "The model 'm' does not exist, or this API key may not use it"
LISTED = "The model 'm' does not exist. Models that do: other"


async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """Knows no model."""
    if scope["type"] != "http":
        raise NotImplementedError
    if scope["path"] == NEWS_PATH:
        await send_bytes(send, b"{}", b"application/json")
    else:
        await send_bytes(send, b"", b"application/json", status=503, headers=[HEADER])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve_asgi(proxy) as url:
        yield httpx.URL(url).port or 0


@pytest.mark.long("starts a service for each way")
@pytest.mark.parametrize("now", [DELETING, GONE], ids=["deleting", "gone"])
@pytest.mark.parametrize(
    ("path", "models", "message"),
    [
        ("/models/m/v1/completions", None, LISTED),
        ("/models/m/v1/completions", ("m",), HIDDEN),
        ("/v1/completions", None, LISTED),
        ("/v1/completions", ("m",), HIDDEN),
    ],
)
async def test_it_is_not_found(
    port: int, now: ServeState, path: str, models: tuple[str, ...] | None, message: str
) -> None:
    app = RouterApp(RouterConfig(), lambda: now, ("127.0.0.1", port))
    app.directory.update(BEFORE)
    await asyncio.sleep(MIN_REFRESH_PERIOD_S + 0.1)  # news of this moment count for so long

    async def identified(scope: Any, receive: Any, send: Any) -> None:
        identity = None if models is None else Identity("team", models=models)
        await app({**scope, SCOPE_KEY: identity}, receive, send)

    transport = httpx.ASGITransport(identified)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post(path, json={"model": "m", "prompt": "x"})
    await app.stop()
    assert answer.status_code == 404, answer.text
    assert answer.json()["error"]["message"] == message


async def test_one_that_is_not_mounted_yet_is_asked_for_again(port: int) -> None:
    app = RouterApp(RouterConfig(), lambda: BEFORE, ("127.0.0.1", port))
    app.directory.update(BEFORE)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        answer = await client.get("/models/m/health")
    await app.stop()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
