"""An application that is built for its first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from truthgpt_serve.playground.first_request import Lifespan, OnFirstRequest


class Pages:
    """What is built, and how often."""

    def __init__(self, *, failures: int = 0, fails_at: str = "") -> None:
        self.events: list[str] = []
        self._failures = failures
        self._fails_at = fails_at

    async def build(self) -> FastAPI:
        self.events.append("built")
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise ImportError("no module named 'pages'")
        app = FastAPI(lifespan=self._live)
        app.get("/ui/")(lambda: "page")
        return app

    @asynccontextmanager
    async def _live(self, app: FastAPI) -> AsyncIterator[None]:
        if self._fails_at == "startup":
            raise OSError("no room for files")
        self.events.append("started")
        yield
        self.events.append("stopped")


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


async def test_it_is_built_once_for_all_that_wait_and_stopped_at_the_end() -> None:
    pages = Pages()
    app = OnFirstRequest(pages.build)
    lifespan = Lifespan(app)
    await lifespan.start()
    assert pages.events == []
    async with client(app) as http:
        answers = await asyncio.gather(*(http.get("/ui/") for _ in range(5)))
    assert [answer.json() for answer in answers] == ["page"] * 5
    assert pages.events == ["built", "started"]
    await lifespan.stop()
    assert pages.events == ["built", "started", "stopped"]


async def test_without_a_request_nothing_is_built() -> None:
    pages = Pages()
    lifespan = Lifespan(OnFirstRequest(pages.build))
    await lifespan.start()
    await lifespan.stop()
    assert pages.events == []


async def test_a_client_that_leaves_does_not_end_what_others_wait_for() -> None:
    pages = Pages()
    app = OnFirstRequest(pages.build)
    async with client(app) as http:
        first = asyncio.ensure_future(http.get("/ui/"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(http.get("/ui/"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).json() == "page"
    assert pages.events == ["built", "started"]
    await app.close()


async def test_after_a_failure_the_next_request_tries_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pages = Pages(failures=1)
    app = OnFirstRequest(pages.build)
    async with client(app) as http:
        refused = await http.get("/ui/")
        assert refused.status_code == 500
        assert refused.json()["error"]["message"] == (
            "the playground cannot be built: the log of its replica says why"
        )
        assert (await http.get("/ui/")).json() == "page"
    assert "no module named 'pages'" in caplog.text
    await app.close()


async def test_a_start_that_fails_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    app = OnFirstRequest(Pages(fails_at="startup").build)
    async with client(app) as http:
        assert (await http.get("/ui/")).status_code == 500
    assert "no room for files" in caplog.text


async def test_an_application_without_a_lifespan_is_a_failure() -> None:
    async def ends_at_once(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    with pytest.raises(RuntimeError, match="the application ended at its startup"):
        await Lifespan(ends_at_once).start()
