"""The relay against a proxy that stops half-way, and clients that do: nothing stays behind.

The proxy is a bare TCP server, because no HTTP server can be brought to do this.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import (
    ModelNotFoundError,
    TruthGPTError,
    UnavailableError,
    UpstreamError,
)
from truthgpt_serve.http.asgi import UNREAD_TIMEOUT_S
from truthgpt_serve.router.bodies.request_body import ClientLeftError, RequestBody
from truthgpt_serve.router.model_entry import ModelEntry
from truthgpt_serve.router.pool import ConnectionPool
from truthgpt_serve.router.relay import BrokenAnswerError, Relay

ENTRY = ModelEntry("m", "m", b"/models/m", True, None, 0, {})
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Bench:
    """A relay, what it sends to the client, and whether its model runs."""

    def __init__(self, port: int, config: RouterConfig) -> None:
        self.pool = ConnectionPool("127.0.0.1", port, connect_timeout_s=1)
        self.running = True
        self.draining = False
        self.sent: list[Any] = []
        self.client_reads = asyncio.Event()
        self.client_reads.set()
        self.exists = True
        self.places: list[bytes] = []
        self._relay = Relay(
            self.pool,
            config,
            lambda name: self.running,
            lambda name: self.draining,
            self._confirm,
            lambda entry, place: self.places.append(place),
        )

    async def _confirm(self, name: str) -> None:
        if not self.exists:
            raise ModelNotFoundError(f"no {name}")

    async def send(self, message: Any) -> None:
        await self.client_reads.wait()
        self.sent.append(message)

    async def request(self, body: RequestBody | None = None, *, length: bytes = b"2") -> None:
        headers = [(b"content-length", length)] if length else []
        scope = {"method": "POST", "path": "/v1/x", "headers": headers}
        if body is None:
            body = RequestBody([b"{}"], 2, False, _nothing)
        await self._relay(scope, self.send, ENTRY, body)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def _nothing() -> Any:
    raise AssertionError("the body is whole")


@asynccontextmanager
async def bench(handler: Handler, **config: Any) -> AsyncIterator[Bench]:
    settings = {"request_timeout_s": 5, "hold_timeout_s": 0.3, **config}
    errors = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            errors.append(error)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    relay = Bench(server.sockets[0].getsockname()[1], RouterConfig(**settings))
    try:
        yield relay
        assert relay.pool.num_open == 0
    finally:
        relay.pool.close()
        server.close()
    assert not errors


def pieces(*messages: Any) -> Callable[[], Awaitable[Any]]:
    """Returns an ASGI `receive` that waits for ever after these."""
    rest = list(messages)

    async def receive() -> Any:
        if not rest:
            await asyncio.Event().wait()
        message = rest.pop(0)
        if isinstance(message, BaseException):
            raise message
        return message

    return receive


async def test_a_connection_is_not_kept_when_its_request_is_not_whole() -> None:
    """The next request would be read as the rest of the body."""
    num_requests = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_requests
        head = await reader.readuntil(b"\r\n\r\n")
        num_requests += 1
        if b"content-length: 1000" in head:
            writer.write(OK)  # before the body is there, and the connection stays open
            await reader.readexactly(1000)
        else:
            await reader.readexactly(2)
            writer.write(OK)
            await writer.drain()

    async with bench(handler) as relay:
        await relay.request(RequestBody([b"{"], 1, True, pieces()), length=b"1000")
        await relay.request()
        assert num_requests == 2
        assert relay.body == b"{}{}"


@pytest.mark.parametrize("worked_s", [0, 1.3])
async def test_a_request_that_may_have_been_worked_on_is_not_sent_again(worked_s: float) -> None:
    """HAProxy closes a kept connection in silence when a replica dies of the request."""
    seen = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK)
        seen.append(await reader.readuntil(b"{}"))
        await asyncio.sleep(worked_s)
        writer.transport.abort()

    async with bench(handler) as relay:
        await relay.request()
        with pytest.raises(UpstreamError):
            await relay.request()
    assert len(seen) == 1


@pytest.mark.parametrize("create_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_has_ended_unseen_is_not_used(create_loop: Any) -> None:
    """Its end has arrived, but the event loop has not come round to it."""
    ended = threading.Event()

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                data = b""
                while not data.endswith(b"{}"):
                    data += connection.recv(65536)
                connection.sendall(OK)
            ended.set()

    async def ask(port: int) -> bytes:
        relay = Bench(port, RouterConfig())
        try:
            await relay.request()
            assert ended.wait(5)  # nothing else runs in this loop meanwhile
            await relay.request()
        finally:
            relay.pool.close()
        return relay.body

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with asyncio.Runner(loop_factory=create_loop) as runner:
            assert runner.run(ask(listener.getsockname()[1])) == b"{}{}"
        thread.join(5)


async def test_a_client_that_does_not_read_does_not_keep_the_model_at_work() -> None:
    gone = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(STREAM)
        try:
            while True:
                writer.write(b"3f0\r\ndata: " + b"x" * 1000 + b"\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            gone.set()

    async with bench(handler, request_timeout_s=0.5) as relay:
        relay.client_reads.clear()
        task = asyncio.create_task(relay.request())
        async with asyncio.timeout(3):
            await gone.wait()
        relay.client_reads.set()  # it reads after all, and learns why there is no more
        await task
    assert b'"code":"timeout"' in relay.body


@pytest.mark.long("waits for limits of time")
async def test_a_client_that_never_reads_does_not_keep_its_request() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(STREAM + b"9\r\ndata: x\n\n\r\n")
        await reader.read(-1)

    async with bench(handler, request_timeout_s=0.5) as relay:
        relay.client_reads.clear()
        async with asyncio.timeout(0.5 + UNREAD_TIMEOUT_S + 2):
            with pytest.raises(BrokenAnswerError, match="did not read its answer"):
                await relay.request()


async def _late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"{}")
    await asyncio.sleep(2.8)
    writer.write(OK)
    await writer.drain()


async def test_a_replica_that_drains_finishes_its_requests() -> None:
    async with bench(_late) as relay:
        relay.draining = True
        task = asyncio.create_task(relay.request())
        await asyncio.sleep(0.1)
        relay.running = False
        await task
    assert relay.body == b"{}"


async def test_a_request_is_held_no_longer_because_another_replica_drains() -> None:
    async with bench(_late) as relay:
        relay.running, relay.draining = False, True
        with pytest.raises(UnavailableError, match=r"no running replica for 0\.3 s"):
            await relay.request()


async def test_a_body_that_cannot_be_read_on_ends_the_request_at_once() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with bench(handler) as relay, asyncio.timeout(2):
        with pytest.raises(ClientLeftError):
            await relay.request(RequestBody([b"{"], 1, True, pieces(OSError("proxy died"))))


async def _leaves_during_an_upload() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def receive() -> Any:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async with bench(handler) as relay, asyncio.timeout(4):
        with pytest.raises(UpstreamError, match="closed the connection"):
            await relay.request(RequestBody([b"{"], 1, True, receive), length=b"30000000")


@pytest.mark.parametrize("create_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_proxy_that_leaves_during_an_upload_is_told_as_that(create_loop: Any) -> None:
    """Ray's workers run uvloop, whose transports raise where asyncio's own do nothing."""
    with asyncio.Runner(loop_factory=create_loop) as runner:
        runner.run(_leaves_during_an_upload())


async def test_a_body_without_a_length_is_counted_also_while_it_is_not_taken() -> None:
    """Serve reads ahead of the application, so waiting for the proxy would bound nothing."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 1_000_000, "more_body": True}

    async with bench(handler, max_body_bytes=20_000_000) as relay, asyncio.timeout(4):
        with pytest.raises(TruthGPTError, match="larger than 20000000 bytes"):
            await relay.request(RequestBody([b"{"], 1, True, receive), length=b"")


async def test_how_fast_places_come_is_noted_and_not_passed_on() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK.replace(b"\r\n\r\n", b"\r\nx-truthgpt-place-us: 250\r\nx-own: 1\r\n\r\n"))
        await reader.read()

    async with bench(serve) as relay:
        await relay.request()
        assert relay.places == [b"250"]
        assert relay.sent[0]["headers"] == [(b"content-length", b"2"), (b"x-own", b"1")]
        relay.pool.close()


async def test_half_an_event_is_not_passed_on() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        for data in (b'data: {"a": 1}\n', b"\ndata: 2", b"\n\n", b'data: {"b": '):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        await handler(reader, writer)

    async with bench(handle) as relay:
        await relay.request()
    events = relay.body.split(b"\n\n")
    assert events[:2] == [b'data: {"a": 1}', b"data: 2"]
    assert events[2].startswith(b'data: {"error":')
    assert events[3:] == [b""]
