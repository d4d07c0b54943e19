"""Requests to vLLM's application end with their clients and in time, however the server says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from deployments.vllm.application.cancellation import CancellableApp
from deployments.vllm.application.local_request import LocalRequest
from truthgpt_serve.http.asgi import Message, Scope

WAIT_S = 10.0
MAX_REQUEST_S = 60.0


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


async def listen(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Client:
    """One request as a server makes it: a body in pieces, and a client that may leave."""

    def __init__(self, app: Any, path: str, pieces: tuple[bytes, ...] = (b"{}",)) -> None:
        self.sent: list[Message] = []
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        for index, piece in enumerate(pieces):
            more = index + 1 < len(pieces)
            self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        self.task = asyncio.create_task(app(scope_of(path), self._messages.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


def scope_of(path: str) -> Scope:
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
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }


@pytest.mark.parametrize("tells", [True, False], ids=["told too", "cancelled only"])
@pytest.mark.parametrize("path", ["/aside", "/direct", "/stream"])
async def test_a_cancelled_request_ends_with_its_work(path: str, tells: bool) -> None:
    work = Work()
    client = Client(CancellableApp(create_app(work), max_request_s=MAX_REQUEST_S), path)
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
    app = CancellableApp(create_app(work), max_request_s=MAX_REQUEST_S)
    client = Client(app, "/body", ())
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(client.task, WAIT_S)
    assert work.ended.is_set()


@pytest.mark.parametrize("path", ["/aside", "/stream"])
async def test_a_disconnect_reaches_the_application(path: str) -> None:
    work = Work()
    client = Client(CancellableApp(create_app(work), max_request_s=MAX_REQUEST_S), path)
    await asyncio.wait_for(work.begun.wait(), WAIT_S)
    client.leave()
    await asyncio.wait_for(work.ended.wait(), WAIT_S)
    await asyncio.wait_for(client.task, WAIT_S)
    assert not work.finished


@pytest.mark.parametrize("path", ["/aside", "/direct", "/stream"])
async def test_time_ends_the_work_and_says_so(path: str) -> None:
    work = Work()
    client = Client(CancellableApp(create_app(work), max_request_s=0.2), path)
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

    client = Client(CancellableApp(stubborn, max_request_s=MAX_REQUEST_S), "/")
    await asyncio.wait_for(begun.wait(), WAIT_S)
    client.task.cancel()
    done, _ = await asyncio.wait((client.task,), timeout=0.3)
    released.set()  # whatever the outcome: else the test would never end
    assert not done
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(client.task, WAIT_S)


async def test_what_the_application_raises_passes() -> None:
    async def broken(scope: Scope, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    client = Client(CancellableApp(broken, max_request_s=MAX_REQUEST_S), "/")
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(client.task, WAIT_S)


async def test_a_local_request_that_is_left_ends_with_its_work() -> None:
    work = Work()
    app = CancellableApp(create_app(work), max_request_s=MAX_REQUEST_S)
    async with LocalRequest(app, "/aside", {}, "id"):
        await asyncio.wait_for(work.begun.wait(), WAIT_S)
    await asyncio.wait_for(work.ended.wait(), WAIT_S)
    assert not work.finished
