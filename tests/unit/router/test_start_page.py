"""What a visitor of the playground sees while it has no process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.unit.router.test_discovery import application
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.errors import RouteNotFoundError
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.start_page import WAKING_PATH, StartPage

WAITS_FOR = "1 replica waits for resources: each needs 0.1 CPU (the cluster has <2>, 0 free)"


async def get(page: StartPage) -> tuple[int, dict[bytes, bytes], str]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await page.answer(send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"].decode()


def page_of(state: ApplicationState | None, wake: Callable[[bytes], Awaitable[Any]]) -> StartPage:
    async def find() -> ApplicationState | None:
        return state

    return StartPage(find, wake)


def ui(**state: Any) -> ApplicationState:
    more = {"status": "RUNNING", "num_running_replicas": 0, "card": None, **state}
    return application("ui", route_prefix="/ui", **more)


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (ui(), "takes some seconds"),
        (ui(waits_for=WAITS_FOR), "the cluster has &lt;2&gt;, 0 free). With `cpus: 0`"),
        (ui(status="DEPLOY_FAILED", waits_for=WAITS_FOR), "`truthgpt logs ui` says why"),
    ],
)
async def test_it_says_what_is_waited_for_and_comes_again(
    state: ApplicationState, shown: str
) -> None:
    asked: list[bytes] = []

    async def wake(path: bytes) -> None:
        asked.append(path)
        raise TimeoutError

    page = page_of(state, wake)
    status, headers, text = await get(page)
    assert status == 503
    assert shown in text
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"retry-after"] == b"2"
    assert b"default-src 'none'" in headers[b"content-security-policy"]
    await asyncio.sleep(0)
    await get(page)
    await asyncio.sleep(0)
    assert asked == [WAKING_PATH] * 2


async def test_one_request_at_a_time_has_it_start() -> None:
    asked, ended = 0, asyncio.Event()

    async def wake(_: bytes) -> None:
        nonlocal asked
        asked += 1
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    page = page_of(ui(), wake)
    for _ in range(3):
        await get(page)
        await asyncio.sleep(0)
    assert asked == 1
    await page.stop()
    assert ended.is_set()


async def test_without_a_playground_there_is_no_such_page() -> None:
    async def wake(_: bytes) -> None:
        raise AssertionError

    with pytest.raises(RouteNotFoundError):
        await get(page_of(None, wake))
