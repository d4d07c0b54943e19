"""What is told of requests, in front of Ray Serve's queue and behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from truthgpt_serve.access.meter import USAGE_KEY
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send
from truthgpt_serve.telemetry.access_log import AccessLog
from truthgpt_serve.telemetry.record import RECORD_KEY, RequestRecord, record_of
from truthgpt_serve.telemetry.watched import Watched
from truthgpt_serve.usage.counted import add_tokens, current_usage, note_break


class Told(AccessLog):
    """A log that is kept."""

    def __init__(self, is_on: bool = True) -> None:
        self.records: list[RequestRecord] = []
        self._on = is_on

    @property
    def is_on(self) -> bool:
        return self._on

    def write(self, record: RequestRecord) -> None:
        self.records.append(record)


def scope_of(path: str = "/v1/infer", method: str = "POST") -> Scope:
    return {"type": "http", "method": method, "path": path, "headers": []}


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def send(message: Message) -> None:
    pass


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    add_tokens(3, 4)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"i")]})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"b"})


async def test_one_line_for_a_request_that_waits_in_rays_queue() -> None:
    log = Told()
    inner = Watched(answer, log, model="story")

    async def queue(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.03)
        await inner(scope, receive, send)

    app = Watched(queue, log, model="story", mount="/models/story")
    await app(scope_of("/models/story/v1/infer"), receive, send)
    (record,) = log.records
    assert (record.status, record.outcome, record.path) == (200, "ok", "/v1/infer")
    assert (record.request_id, record.model) == ("i", "story")
    assert (record.usage.prompt_tokens, record.usage.completion_tokens) == (3, 4)
    assert record.first_s is not None
    assert 0.03 <= record.queued_s <= record.first_s - record.began_s
    assert record.last_s - record.first_s >= 0.019


async def test_nothing_is_kept_of_requests_where_nobody_wants_it() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((RECORD_KEY in scope, USAGE_KEY in scope, current_usage()))

    log = Told(is_on=False)
    await Watched(app, log)(scope_of(), receive, send)
    assert seen == [(False, False, None)]
    assert not log.records


async def test_nothing_is_told_of_probes() -> None:
    log = Told()
    await Watched(answer, log)(scope_of("/health", "GET"), receive, send)
    await Watched(answer, log)(scope_of("/v1/models", "GET"), receive, send)
    assert [record.path for record in log.records] == ["/v1/models"]


async def test_an_error_and_a_client_that_left() -> None:
    log = Told()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("engine")

    with pytest.raises(ValueError, match="engine"):
        await Watched(broken, log)(scope_of(), receive, send)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    task = asyncio.create_task(Watched(slow, log)(scope_of(), receive, send))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait((task,))
    assert log.records[1].last_s - log.records[1].began_s >= 0.019
    assert [(record.status, record.outcome) for record in log.records] == [
        (200, "error"),
        (0, "cancelled"),
    ]


@pytest.mark.parametrize(("breaks", "told"), [(False, 0), (True, 1)])
async def test_a_relayed_answer_is_told_here_only_if_it_broke_off(breaks: bool, told: int) -> None:
    log = Told()

    async def relay(scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(dict(scope))
        assert record is not None
        record.is_relayed = True
        await answer(scope, receive, send)
        if breaks:
            note_break()

    await Watched(relay, log)(scope_of(), receive, send)
    assert [record.outcome for record in log.records] == ["error"] * told


async def test_a_stream_that_broke_off_ends_when_it_did() -> None:
    log = Told()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"a", b"b"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.02)
        raise ValueError("engine")

    with pytest.raises(ValueError, match="engine"):
        await Watched(broken, log)(scope_of(), receive, send)
    (record,) = log.records
    assert record.first_s is not None
    assert record.first_s - record.began_s < 0.019 < record.last_s - record.began_s
    assert (record.is_whole, record.outcome) == (False, "error")
