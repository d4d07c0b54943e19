"""Requests end with their clients and in time, and with a whole answer, however they fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from deployments.vllm.application.local_request import LocalRequest
from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.asgi import Message, Scope
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.server.bounded import WATCH_S, BoundedRequests

WAIT_S = 10.0
MAX_REQUEST_S = 60.0


def bounded(
    app: Any, *, max_body_bytes: int = 1000, max_request_s: float = MAX_REQUEST_S
) -> BoundedRequests:
    return BoundedRequests(app, "m", max_body_bytes=max_body_bytes, max_request_s=max_request_s)


class Work:
    """What the handlers below have begun and ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.finished = False

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(MAX_REQUEST_S)
            self.finished = True
        finally:
            self.ended.set()


def create_app(work: Work) -> FastAPI:
    app = FastAPI()

    @app.post("/aside")
    async def aside(request: Request) -> dict[str, bool]:
        """Works in a task of its own until the client leaves, as vLLM's `with_cancellation`."""
        await request.body()
        handler = asyncio.create_task(work.run())
        listener = asyncio.create_task(listen(request))
        await asyncio.wait((handler, listener), return_when=asyncio.FIRST_COMPLETED)
        for task in (handler, listener):
            task.cancel()
        return {"finished": work.finished}

    @app.post("/direct")
    async def direct(request: Request) -> None:
        await work.run()

    @app.post("/stream")
    async def stream(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await work.run()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    @app.post("/body")
    async def body(request: Request) -> None:
        work.begun.set()
        try:
            await request.body()
        finally:
            work.ended.set()

    return app


class Whole:
    """Answers at once."""

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def listen(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Client:
    """One request as a server makes it: a body in pieces, and a client that may leave."""

    def __init__(
        self,
        app: Any,
        path: str,
        pieces: tuple[bytes, ...] = (b"{}",),
        length: int | None = None,
    ) -> None:
        self.sent: list[Message] = []
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        for index, piece in enumerate(pieces):
            more = index + 1 < len(pieces)
            self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        self.task = asyncio.create_task(app(scope_of(path, length), self._messages.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


def scope_of(path: str, length: int | None = None) -> Scope:
    sized = [] if length is None else [(b"content-length", b"%d" % length)]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), *sized],
        "client": None,
        "server": None,
    }


@pytest.mark.parametrize("tells", [True, False], ids=["told too", "cancelled only"])
@pytest.mark.parametrize("path", ["/aside", "/direct", "/stream"])
async def test_a_cancelled_request_ends_with_its_work(path: str, tells: bool) -> None:
    work = Work()
    client = Client(bounded(create_app(work)), path)
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    if tells:  # Ray Serve does both, in either order
        client.leave()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()
    assert not work.finished
    assert len(client.sent) == (2 if path == "/stream" else 0)


async def test_a_request_cancelled_in_its_body_ends() -> None:
    work = Work()
    app = bounded(create_app(work))
    client = Client(app, "/body", ())
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()


@pytest.mark.parametrize("delay_s", [0, 2 * WATCH_S], ids=["soon", "later"])
@pytest.mark.parametrize("path", ["/aside", "/direct", "/stream"])
async def test_a_client_that_leaves_ends_the_work(path: str, delay_s: float) -> None:
    work = Work()
    client = Client(bounded(create_app(work)), path)
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    await asyncio.sleep(delay_s)
    client.leave()
    await asyncio.wait_for(work.ended.wait(), WAIT_S)
    await asyncio.wait_for(client.task, WAIT_S)
    assert not work.finished
    assert len(client.sent) == (2 if path == "/stream" else 0)


@pytest.mark.parametrize("pieces", [(b"{", b"}"), (b"{", b"1" * 500, b"1" * 500)])
async def test_a_client_that_leaves_before_its_body_is_taken(pieces: tuple[bytes, ...]) -> None:
    work = Work()

    async def wait(scope: Scope, receive: Any, send: Any) -> None:
        await work.run()

    client = Client(bounded(wait), "/", pieces)
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    client.leave()
    await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()
    assert client.sent == []


async def test_one_that_stops_listening_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truthgpt_serve.server.bounded.LOOK_S", 0.05)
    work = Work()

    async def listen_for_a_while(scope: Scope, receive: Any, send: Any) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(listen(Request(scope, receive)), 2 * WATCH_S)
        await work.run()

    client = Client(bounded(listen_for_a_while), "/")
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    client.leave()
    await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()


async def test_a_body_that_is_taken_late_is_whole() -> None:
    bodies: list[bytes] = []

    async def take_late(scope: Scope, receive: Any, send: Any) -> None:
        await asyncio.sleep(2 * WATCH_S)
        bodies.append(await Request(scope, receive).body())
        await Whole()(scope, receive, send)

    client = Client(bounded(take_late), "/", (b"one ", b"two ", b"three"))
    await asyncio.wait_for(client.task, WAIT_S)
    assert bodies == [b"one two three"]
    assert client.sent[0]["status"] == 200


async def test_what_is_soon_answered_starts_one_task() -> None:
    num_tasks = []

    async def count(scope: Scope, receive: Any, send: Any) -> None:
        async with Connection(scope, receive, send).guard(WAIT_S):
            await receive()
            await asyncio.sleep(WATCH_S / 10)
            num_tasks.append(len(asyncio.all_tasks()))
        await Whole()(scope, receive, send)

    client = Client(bounded(count), "/")
    await asyncio.wait_for(client.task, WAIT_S)
    assert num_tasks == [3]  # this test, the request, its application
    assert client.sent[0]["status"] == 200


async def test_leaving_behind_the_answer_ends_nothing() -> None:
    """A server says so of every client behind a whole answer, too."""
    work = Work()

    async def go_on(scope: Scope, receive: Any, send: Any) -> None:
        await Whole()(scope, receive, send)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await asyncio.sleep(2 * WATCH_S)
        work.finished = True

    client = Client(bounded(go_on), "/")
    client.leave()
    await asyncio.wait_for(client.task, WAIT_S)
    assert work.finished


@pytest.mark.parametrize("path", ["/aside", "/direct", "/stream"])
async def test_time_ends_the_work_and_says_so(path: str) -> None:
    work = Work()
    client = Client(bounded(create_app(work), max_request_s=0.2), path)
    await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()
    assert not work.finished
    text = b"".join(message.get("body", b"") for message in client.sent)
    assert b"did not finish within 0.2 s" in text
    if path == "/stream":
        assert client.sent[0]["status"] == 200
        assert text.startswith(b"data: 1\n\ndata: {")
    else:
        assert client.sent[0]["status"] == 504


async def test_work_that_ignores_its_cancellation_keeps_its_place() -> None:
    released, begun = asyncio.Event(), asyncio.Event()

    async def stubborn(scope: Scope, receive: Any, send: Any) -> None:
        begun.set()
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    client = Client(bounded(stubborn), "/")
    await asyncio.wait_for(begun.wait(), WAIT_S)
    client.task.cancel()
    done, _ = await asyncio.wait((client.task,), timeout=0.3)
    released.set()  # whatever the outcome: else the test would never end
    assert not done
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(client.task, WAIT_S)


def start(kind: bytes) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


EVENTS, HALF = b"text/event-stream", b'data: {"te'
FAILED = b"the model 'm' failed; its log has the cause under request id "


@pytest.mark.parametrize("raises", [ZeroDivisionError("secret"), None], ids=["raises", "returns"])
@pytest.mark.parametrize(
    ("messages", "status", "whole"),
    [
        ([], 500, True),
        ([start(EVENTS), piece(b"data: 1\n\n")], 200, True),
        ([start(EVENTS), piece(b"data: 1\n\n"), piece(HALF)], 200, True),
        ([start(b"text/plain"), piece(b"abc")], 200, False),
    ],
    ids=["at once", "in a stream", "in an event", "in a body"],
)
async def test_an_application_that_fails_is_answered_for(
    messages: list[Message], status: int, whole: bool, raises: Exception | None
) -> None:
    async def broken(scope: Scope, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        if raises is not None:
            raise raises

    client = Client(bounded(broken), "/")
    await asyncio.wait_for(client.task, WAIT_S)
    text = b"".join(message.get("body", b"") for message in client.sent)
    assert client.sent[0]["status"] == status
    assert client.sent[-1].get("more_body", False) is not whole
    assert (FAILED in text) is whole
    assert b"secret" not in text
    assert HALF not in text


async def test_an_error_of_ours_keeps_its_status() -> None:
    async def refusing(scope: Scope, receive: Any, send: Any) -> None:
        raise UnsupportedError("not today", param="day")

    client = Client(bounded(refusing), "/")
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent[0]["status"] == 400
    assert json.loads(client.sent[1]["body"])["error"]["param"] == "day"


async def test_what_fails_behind_a_whole_answer_changes_nothing() -> None:
    async def late(scope: Scope, receive: Any, send: Any) -> None:
        await send(start(b"text/plain"))
        await send(piece(b"abc", more=False))
        raise ZeroDivisionError

    client = Client(bounded(late), "/")
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent == [start(b"text/plain"), piece(b"abc", more=False)]


@pytest.mark.parametrize("pieces", [(b"x" * 11,), (b"x" * 6, b"x" * 6, b"x")])
async def test_a_large_body_is_refused_as_it_comes(pieces: tuple[bytes, ...]) -> None:
    client = Client(bounded(create_app(Work()), max_body_bytes=10), "/body", pieces)
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent[0]["status"] == 413
    assert b"larger than 10 bytes" in client.sent[1]["body"]


async def test_a_body_that_says_too_large_a_length_is_not_read() -> None:
    work = Work()
    client = Client(bounded(create_app(work), max_body_bytes=10), "/body", (), length=11)
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent[0]["status"] == 413
    assert not work.begun.is_set()


async def test_a_body_that_takes_the_whole_time_is_answered_408() -> None:
    client = Client(bounded(create_app(Work()), max_request_s=0.1), "/body", ())
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent[0]["status"] == 408
    assert b"did not arrive within 0.1 s" in client.sent[1]["body"]


async def test_a_body_that_stops_is_answered_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truthgpt_serve.server.arriving_body.STALL_S", 0.1)
    client = Client(bounded(create_app(Work())), "/body", ())
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent[0]["status"] == 408
    assert b"no data of the request body arrived for" in client.sent[1]["body"]


async def test_a_client_that_left_is_not_answered() -> None:
    async def gone(scope: Scope, receive: Any, send: Any) -> None:
        await receive()

    client = Client(bounded(gone), "/", ())
    client.leave()
    await asyncio.wait_for(client.task, WAIT_S)
    assert client.sent == []


async def test_a_local_request_that_is_left_ends_with_its_work() -> None:
    work = Work()
    app = bounded(create_app(work))
    async with LocalRequest(app, "/aside", {}, "id"):
        await asyncio.wait_for(work.begun.wait(), WAIT_S)
    await asyncio.wait_for(work.ended.wait(), WAIT_S)
    assert not work.finished
