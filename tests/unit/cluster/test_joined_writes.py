"""What is written in one turn of the event loop goes out together, and at once after it."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvloop

from tests.support.remote_servers import serve_at
from truthgpt_serve.cluster.joined_writes import HELD_BYTES, HELD_S, JoinedWrites, outbox_of
from truthgpt_serve.cluster.old_clients import OldClientsProtocol

LIMIT_S = 20
DATA_SEGMENTS_IN = 152
"""Where Linux's `struct tcp_info` has how many segments with data have come."""
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"

Answer = Callable[[Any], Any]


def start(length: int | None = None, status: int = 200) -> dict[str, Any]:
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@contextmanager
def answered(answer: Answer, request: bytes = REQUEST) -> Iterator[socket.socket]:
    """Yields a client that has asked a server, which answers by `answer(send)`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await answer(send)

    with (
        serve_at(app, http=OldClientsProtocol) as port,
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client,
    ):
        client.sendall(request)
        yield client


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = client.recv(1 << 20)
        assert piece, data[-200:]
        data += piece
    return data


def num_segments(client: socket.socket) -> int:
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", info, DATA_SEGMENTS_IN)[0])


def test_the_loop_sends_each_write_at_once() -> None:
    """Else nothing needs to be joined here."""

    async def write_twice() -> int:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        theirs.setblocking(False)
        transport.write(b"head")
        with theirs:
            num = len(theirs.recv(100))
        transport.close()
        return num

    assert uvloop.run(write_twice()) == len(b"head")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_short_answer_is_one_segment(chunked: bool) -> None:
    async def answer(send: Any) -> None:
        await send(start(None if chunked else 5))
        await send(body(b"whole"))

    with answered(answer) as client:
        for num in (1, 2, 3):
            if num > 1:
                client.sendall(REQUEST)
            data = read_until(client, b"whole\r\n0\r\n\r\n" if chunked else b"whole")
            assert data.startswith(b"HTTP/1.1 200")
            assert num_segments(client) == num


@pytest.mark.parametrize("length", [HELD_BYTES - 1, HELD_BYTES, HELD_BYTES + 1, 5_000_000])
def test_a_long_first_piece_comes_whole(length: int) -> None:
    content = bytes(range(256)) * (length // 256) + b"x" * (length % 256 - 1) + b"\n"

    async def answer(send: Any) -> None:
        await send(start(len(content) + 4))
        await send(body(content, more=True))
        await send(body(b"last"))

    with answered(answer) as client:
        head, _, rest = read_until(client, b"\nlast").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert rest == content + b"last"


def test_a_head_goes_before_a_pause() -> None:
    may_go_on = threading.Event()

    async def answer(send: Any) -> None:
        await send(start(4))
        await asyncio.get_running_loop().run_in_executor(None, may_go_on.wait, LIMIT_S)
        await send(body(b"late"))

    with answered(answer) as client:
        try:
            assert read_until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        finally:
            may_go_on.set()
        assert read_until(client, b"late") == b"late"


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_an_answer_without_a_body(method: bytes) -> None:
    async def answer(send: Any) -> None:
        await send(start(4 if method == b"HEAD" else None, 200 if method == b"HEAD" else 204))
        await send(body(b""))

    with answered(answer, REQUEST.replace(b"GET", method)) as client:
        assert b"\r\n\r\n" in read_until(client, b"\r\n\r\n")
        client.sendall(REQUEST.replace(b"GET", method))  # the connection goes on
        read_until(client, b"\r\n\r\n")


@pytest.mark.parametrize("fails", [True, False])
def test_a_head_is_sent_before_the_connection_closes(fails: bool) -> None:
    async def answer(send: Any) -> None:
        await send(start(10))
        if fails:
            raise ConnectionError
        await send(body(b"short", more=True))
        raise ConnectionError

    with answered(answer) as client:
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"\r\n\r\n" if fails else b"\r\n\r\nshort")


def test_the_events_of_a_stream_keep_their_order() -> None:
    async def answer(send: Any) -> None:
        await send(start())
        for number in range(50):
            await send(body(b"%d\n" % number, more=True))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await send(body(b""))

    with answered(answer) as client:
        data = read_until(client, b"0\r\n\r\n").partition(b"\r\n\r\n")[2]
    lines = [line for line in data.split(b"\r\n") if line.endswith(b"\n")]
    assert lines == [b"%d\n" % number for number in range(50)]


def test_a_client_that_leaves_with_a_held_head() -> None:
    left, ended = threading.Event(), threading.Event()

    async def answer(send: Any) -> None:
        try:
            await send(start(4))
            left.wait(LIMIT_S)  # the loop stands
            await send(body(b"gone"))
        finally:
            ended.set()

    with answered(answer) as client:
        time.sleep(0.1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # resets
        left.set()
        assert ended.wait(LIMIT_S)


UPGRADE = (
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: upgrade\r\n"
    b"upgrade: h2c\r\n\r\nno"
)


WEBSOCKET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
KEY = b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize("second", [UPGRADE, b"no HTTP at all\r\n\r\n", WEBSOCKET + b"\r\n"])
def test_a_refusal_comes_behind_the_answer_before(second: bytes) -> None:
    asked = threading.Event()

    async def answer(send: Any) -> None:
        asked.wait(LIMIT_S)  # the loop stands: what the client sends meanwhile comes next
        await send(start(5))
        await send(body(b"first"))

    with answered(answer) as client:
        time.sleep(0.1)
        client.sendall(second)
        time.sleep(0.1)
        asked.set()
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 200"), data
    assert data.index(b"first") < data.index(b"HTTP/1.1 400")


def test_a_websocket_begins_behind_the_answer_before() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send(start(5))
            await send(body(b"first"))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": b"hello"})
            await send({"type": "websocket.close"})
        else:
            raise NotImplementedError

    with (
        serve_at(app, http=OldClientsProtocol) as port,
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client,
    ):
        client.sendall(REQUEST + WEBSOCKET + KEY + b"\r\n")
        data = read_until(client, b"\x88\x02\x03\xe8")
    assert data.startswith(b"HTTP/1.1 200")
    assert data.index(b"first") < data.index(b"HTTP/1.1 101") < data.index(b"\x82\x05hello")


def test_a_websocket_holds_nothing() -> None:
    """Its protocol is not asked before the connection ends, so nothing could be sent then."""
    may_go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": b"hello"})
        may_go_on.wait(LIMIT_S)  # the loop stands
        await send({"type": "websocket.close"})

    with (
        serve_at(app, http=OldClientsProtocol) as port,
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S / 4) as client,
    ):
        client.sendall(WEBSOCKET + KEY + b"\r\n")
        try:
            read_until(client, b"\x82\x05hello")
        finally:
            may_go_on.set()


def test_a_client_that_only_ends_its_side_gets_its_answer() -> None:
    ended = threading.Event()

    async def answer(send: Any) -> None:
        ended.wait(LIMIT_S)  # the loop stands: the client's end comes before the turn's
        await send(start(5))
        await send(body(b"whole"))

    with answered(answer) as client:
        time.sleep(0.1)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        ended.set()
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.endswith(b"whole")


def test_a_slow_reader_that_has_ended_its_side_misses_nothing() -> None:
    pieces = [b"a" * 8_000_000, b"small", b"b" * 40_000]

    async def answer(send: Any) -> None:
        await send(start())
        for number, piece in enumerate(pieces):
            await send(body(piece, more=number < len(pieces) - 1))

    with answered(answer) as client:
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        data = read_until(client, b"0\r\n\r\n").partition(b"\r\n\r\n")[2]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    assert data == chunks + b"0\r\n\r\n"


class Sent(asyncio.Transport):
    """A transport that notes what it is given."""

    def __init__(self, log: list[tuple[int, bytes]], number: int) -> None:
        super().__init__()
        self._log = log
        self._number = number
        self.is_closed = False
        self.is_broken = False

    def write(self, data: Any) -> None:
        if self.is_broken:
            raise RuntimeError("broken")
        self._log.append((self._number, bytes(data)))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


def joined(log: list[tuple[int, bytes]], number: int, loop: asyncio.AbstractEventLoop) -> Any:
    return JoinedWrites(Sent(log, number), outbox_of(loop))


def test_connections_are_sent_together_at_the_end_of_a_turn() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        both = [joined(log, number, loop) for number in range(2)]
        for piece in (b"a", b"b"):
            for one in both:
                loop.call_soon(one.write, piece)
        loop.call_soon(log.append, (-1, b"the turn is over"))
        await asyncio.sleep(0.05)

    uvloop.run(run())
    assert log == [(-1, b"the turn is over"), (0, b"ab"), (1, b"ab")]


def test_writes_do_not_wait_for_a_long_turn() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        first, second, third = (joined(log, number, loop) for number in range(3))
        loop.call_soon(first.write, b"1")
        loop.call_soon(time.sleep, 2 * HELD_S)
        loop.call_soon(second.write, b"2")
        loop.call_soon(log.append, (-1, b"the turn is over"))
        await asyncio.sleep(0.05)
        third.write(b"3")  # the outbox goes on as before, and counts from now
        first.write(b"4")
        assert len(log) == 3
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # at once

    uvloop.run(run())
    assert log == [(0, b"1"), (1, b"2"), (-1, b"the turn is over"), (2, b"3"), (0, b"4")]


def test_a_connection_that_writes_again_does_not_wait_for_a_long_turn() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        one = joined(log, 0, loop)
        loop.call_soon(one.write, b"1")
        loop.call_soon(time.sleep, 2 * HELD_S)
        loop.call_soon(one.write, b"2")
        loop.call_soon(log.append, (-1, b"the turn is over"))
        await asyncio.sleep(0.05)

    uvloop.run(run())
    assert log == [(0, b"12"), (-1, b"the turn is over")]


def test_much_is_sent_at_once() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        one = joined(log, 0, asyncio.get_running_loop())
        for _ in range(3):
            one.write(b"x" * (HELD_BYTES // 2))
        assert [len(data) for _, data in log] == [HELD_BYTES, HELD_BYTES // 2]
        one.write(b"tail")
        await asyncio.sleep(0.05)

    uvloop.run(run())
    assert log[2:] == [(0, b"tail")]


def test_a_connection_that_fails_does_not_hold_up_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        broken, other = (joined(log, number, loop) for number in range(2))
        broken.transport.is_broken = True
        broken.write(b"1")
        other.write(b"2")
        await asyncio.sleep(0.05)
        assert broken.is_closing()

    uvloop.run(run())
    assert log == [(1, b"2")]
    assert "could not be sent" in caplog.text


def test_nothing_is_left_of_a_loop() -> None:
    async def run() -> weakref.ref[asyncio.AbstractEventLoop]:
        loop = asyncio.get_running_loop()
        joined([], 0, loop).write(b"1")
        await asyncio.sleep(0.05)
        return weakref.ref(loop)

    left = asyncio.run(run())
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("is_lost", [False, True])
def test_what_is_held_as_the_connection_ends(is_lost: bool) -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        one = joined(log, 0, asyncio.get_running_loop())
        one.write(b"last")
        if is_lost:
            one.end_holding(is_lost=True)
        one.close()
        assert one.is_closing()
        await asyncio.sleep(0.05)

    uvloop.run(run())
    assert log == ([] if is_lost else [(0, b"last")])


def test_a_connection_that_holds_nothing_any_more() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        one = joined(log, 0, asyncio.get_running_loop())
        one.write(b"1")
        one.end_holding()
        assert log == [(0, b"1")]
        one.write(b"2")
        assert log == [(0, b"1"), (0, b"2")]

    uvloop.run(run())


def test_other_types_are_sent_as_they_were_when_written() -> None:
    log: list[tuple[int, bytes]] = []

    async def run() -> None:
        one = joined(log, 0, asyncio.get_running_loop())
        buffer = bytearray(b"1234")
        one.write(buffer)
        buffer[:] = b"5678"
        one.write(memoryview(buffer))
        buffer[:] = b"xxxx"
        await asyncio.sleep(0.05)

    uvloop.run(run())
    assert log == [(0, b"12345678")]


def test_interim_answers_come_first() -> None:
    request = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        message = await receive()
        await send(start(2))
        await send(body(message["body"]))

    with (
        serve_at(app, http=OldClientsProtocol) as port,
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client,
    ):
        client.sendall(request)
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"ok")
        assert read_until(client, b"\r\n\r\nok").startswith(b"HTTP/1.1 200")
