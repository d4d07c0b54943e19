"""What a request of a key did is told when it has ended, however it ended."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.meter import METERED_KEY, Ended, Meter
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.errors import RateLimitError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send
from truthgpt_serve.usage.counted import add_tokens, note_break

TEAM = Identity("team", limits=Limits(max_concurrent=1, requests_per_minute=100))


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quota]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quota = Quota(tmp_path / "keys.yaml")
    yield quota
    quota.close()


def answering(status: int, *steps: Callable[[], Any]) -> Any:
    """Returns an application that sends a piece after each step."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        for step in steps:
            found = step()
            if found is not None:
                await found
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


async def serve(quota: Quota, app: Any) -> tuple[list[Ended], list[Message]]:
    told: list[Ended] = []
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    meter = Meter(quota, told.append)
    scope: Scope = {"type": "http"}
    metered = await meter.begin(TEAM, scope, send)
    task = asyncio.create_task(metered.answer(app, scope, receive))
    with pytest.raises(RateLimitError):  # it holds the key's only place until it ends
        await meter.admit(TEAM)
    assert told.pop().outcome == "refused"
    done, _ = await asyncio.wait((task,), timeout=3)
    if not done:
        task.cancel()
        await asyncio.wait((task,))
    elif error := task.exception():
        assert str(error) == "gone"
    last = await meter.admit(TEAM)
    assert last is not None
    last.end()
    return told, sent


async def test_a_whole_answer(quota: Quota) -> None:
    app = answering(200, lambda: add_tokens(3, 1), lambda: asyncio.sleep(0.1))
    (ended,), sent = await serve(quota, app)
    assert (ended.key, ended.status, ended.outcome) == ("team", 200, "ok")
    assert (ended.usage.prompt_tokens, ended.usage.completion_tokens) == (3, 1)
    assert ended.usage.key == "team"
    assert ended.first_s is not None
    assert 0 <= ended.first_s <= ended.whole_s - 0.09
    assert dict(sent[0]["headers"])[b"x-ratelimit-limit-requests"] == b"100"


async def test_answers_that_fail(quota: Quota) -> None:
    def gone() -> None:
        raise OSError("gone")

    for app, status in (
        (answering(500), 500),
        (answering(200, gone), 200),
        (answering(200, note_break), 200),
    ):
        (ended,), _ = await serve(quota, app)
        assert (ended.status, ended.outcome) == (status, "error")


@pytest.mark.long("waits for limits of time")
async def test_a_client_that_leaves(quota: Quota) -> None:
    app = answering(200, lambda: add_tokens(9, 2), lambda: asyncio.sleep(60))
    (ended,), _ = await serve(quota, app)
    assert ended.outcome == "cancelled"
    assert ended.usage.completion_tokens == 2


async def test_a_refusal_behind_the_gate(quota: Quota) -> None:
    (ended,), _ = await serve(quota, answering(429))
    assert ended.outcome == "refused"


async def test_work_that_outlives_its_client_holds_its_place(quota: Quota) -> None:
    """As Ray's server leaves behind what it has cancelled."""
    told: list[Ended] = []
    meter = Meter(quota, told.append)
    scope: Scope = {"type": "http"}
    go_on, works = asyncio.Event(), asyncio.Event()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        works.set()
        await go_on.wait()
        add_tokens(5, 6)

    tasks = []

    async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
        tasks.append(asyncio.ensure_future(scope[METERED_KEY].work(work, scope, receive, send)))
        await works.wait()
        raise asyncio.CancelledError

    async def nothing(message: Any = None) -> Any:
        return {"type": "http.disconnect"}

    metered = await meter.begin(TEAM, scope, nothing)
    with pytest.raises(asyncio.CancelledError):
        await metered.answer(leaving, scope, nothing)
    with pytest.raises(RateLimitError):
        await meter.begin(TEAM, {"type": "http"}, nothing)
    assert [ended.outcome for ended in told] == ["refused"]
    go_on.set()
    await asyncio.gather(*tasks)
    assert (told[1].outcome, told[1].usage.completion_tokens) == ("cancelled", 6)
    await meter.begin(TEAM, {"type": "http"}, nothing)


async def test_a_client_that_has_its_answer_may_send_the_next(quota: Quota) -> None:
    """Its next request can come before the first one's application has returned."""
    meter = Meter(quota, lambda _ended: None)
    admitted = 0

    async def send(message: Message) -> None:
        nonlocal admitted
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            lease = await meter.admit(TEAM)
            assert lease is not None
            lease.end()
            admitted += 1

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Scope = {"type": "http"}
    metered = await meter.begin(TEAM, scope, send)
    await metered.answer(answering(200, lambda: None), scope, receive)
    assert admitted == 1
