"""What clients do not read is bounded: of whole answers, those that have waited are cut."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support.remote_servers import serve_at
from truthgpt_serve.cluster import unread_answers
from truthgpt_serve.cluster.old_clients import OldClientsProtocol
from truthgpt_serve.cluster.unread_answers import UnreadAnswers, unread_answers_of

LIMIT_S = 30
SIZE = 32 * 2**20
"""Far more than the system takes of an answer that nobody reads."""


class BrokenError(Exception):
    """An application fails in the middle of an answer."""


class Server:
    """A server of long answers, and what it holds."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._newest: Any = None

    @property
    def unread(self) -> UnreadAnswers:
        assert self.loop is not None
        return unread_answers_of(self.loop)

    def wait_for(self, number: int) -> None:
        """Waits until so many clients do not read."""
        deadline = time.monotonic() + LIMIT_S
        while self.loop is None or len(self.unread._connections) != number:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_for_another(self, number: int) -> None:
        """Waits until one more client does not read, and so many are left."""
        deadline = time.monotonic() + LIMIT_S
        while (
            self.loop is None
            or len(found := [*self.unread._connections]) != number
            or found[-1] is self._newest
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self._newest = found[-1]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        self.loop = asyncio.get_running_loop()
        piece = {"type": "http.response.body", "body": bytes(SIZE)}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/broken":
            await send({**piece, "more_body": True})
            raise BrokenError
        if scope["path"] == "/long":
            for _ in range(3):
                await send({**piece, "more_body": True})
        await send(piece)


@contextmanager
def serving() -> Iterator[tuple[Server, Any]]:
    server = Server()
    with ExitStack() as stack:
        # What is forgotten is so because of its client, and not as its connection is idle.
        options: dict[str, Any] = {"http": OldClientsProtocol, "timeout_keep_alive": 2 * LIMIT_S}
        port = stack.enter_context(serve_at(server, **options))

        def ask(path: str = "/") -> socket.socket:
            client = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
            stack.callback(client.close)
            client.sendall(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
            return client

        yield server, ask


def read(client: socket.socket) -> int:
    """Returns how much comes before the end of an answer, or of its connection."""
    number, last = 0, b""
    while not last.endswith(b"0\r\n\r\n"):
        try:
            piece = client.recv(1 << 20)
        except ConnectionResetError:
            break
        if not piece:
            break
        number, last = number + len(piece), (last + piece)[-5:]
    return number


@pytest.mark.parametrize("limit", ["MAX_ANSWERS", "MAX_BYTES"])
def test_the_oldest_is_cut(
    limit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unread_answers, limit, 2 if limit == "MAX_ANSWERS" else 5 * SIZE // 2)
    caplog.set_level(logging.WARNING, unread_answers.__name__)
    with serving() as (server, ask):
        clients = []
        for number in (1, 2, 2, 2):
            clients.append(ask())
            server.wait_for_another(number)
        got = [read(client) for client in clients]
        server.wait_for(0)
    assert [number > SIZE for number in got] == [False, False, True, True]
    assert caplog.text.count("were cut that their clients did not read") == 1


def test_what_is_worked_on_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 1)
    with serving() as (server, ask):
        long = ask("/long")
        server.wait_for_another(1)
        first = ask()
        server.wait_for_another(2)
        second = ask()
        server.wait_for_another(2)
        assert read(first) < SIZE
        server.wait_for(2)
        assert read(second) > SIZE
        assert len(long.recv(SIZE)) > 0
        long.close()
        server.wait_for(0)


def test_what_is_worked_on_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 1)
    with serving() as (server, ask):
        for number in (1, 2, 3):
            ask("/long")
            server.wait_for(number)
        whole = ask()
        server.wait_for(4)
        time.sleep(0.2)
        assert read(whole) > SIZE


def test_what_broke_off_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 1)
    with serving() as (server, ask):
        for number in (1, 1, 1):
            ask("/broken")
            server.wait_for_another(number)


def read_half(server: Server, client: socket.socket) -> int:
    """Reads of the only answer until half of it waits; returns how much that was."""
    (connection,) = server.unread._connections
    number = 0
    while connection.num_unread > SIZE // 2:
        number += len(client.recv(1 << 18))
        time.sleep(0.005)  # the server writes on meanwhile
    return number


@pytest.mark.parametrize("limit", ["MAX_ANSWERS", "MAX_BYTES"])
def test_who_reads_slowly_is_not_cut(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, limit, 2 if limit == "MAX_ANSWERS" else 13 * SIZE // 5)
    monkeypatch.setattr(unread_answers, "SETTLE_S", 0.1)
    with serving() as (server, ask):
        slow = ask()
        server.wait_for_another(1)
        time.sleep(0.2)
        had = read_half(server, slow)
        others = []
        for number in (2, 2 if limit == "MAX_ANSWERS" else 3):
            others.append(ask())
            server.wait_for_another(number)
        time.sleep(0.2)
        assert had + read(slow) > SIZE
        got = [read(client) > SIZE for client in others]
    assert got == [limit == "MAX_BYTES", True]


def read_slowly(client: socket.socket, seconds: float) -> int:
    """Reads a little again and again for so long; returns how much that was."""
    number, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        number += len(client.recv(1 << 18))
        time.sleep(0.05)
    return number


def test_whoever_reads_is_not_cut_before_much_more_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_BYTES", 3 * SIZE // 2)
    with serving() as (server, ask), ThreadPoolExecutor() as pool:
        clients = []
        for number in (1, 2, 3):
            clients.append(ask())
            server.wait_for_another(number)
        reading = [pool.submit(read_slowly, client, 3.0) for client in clients[1:]]
        server.wait_for(2)
        assert read(clients[0]) < SIZE
        had = [each.result(LIMIT_S) for each in reading]
        got = [number + read(client) for number, client in zip(had, clients[1:], strict=True)]
        assert min(got) > SIZE


@pytest.mark.parametrize("limit", ["MAX_ANSWERS", "MAX_BYTES"])
def test_far_too_much_is_cut_at_once(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, limit, 1 if limit == "MAX_ANSWERS" else SIZE)
    monkeypatch.setattr(unread_answers, "SETTLE_S", LIMIT_S)  # nobody is known not to read
    with serving() as (server, ask):
        clients = []
        for number in (1, 2, 3, 4, 4, 4):
            clients.append(ask())
            server.wait_for_another(number)
        assert [read(client) > SIZE for client in clients] == [False] * 2 + [True] * 4


@pytest.mark.parametrize("num_before", [0, 1])
def test_the_newest_is_not_cut_however_long_it_is(
    num_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread_answers, "MAX_BYTES", SIZE // 2)
    with serving() as (server, ask):
        for _ in range(num_before):
            ask()
            server.wait_for_another(1)
        long = ask()
        server.wait_for_another(1)
        time.sleep(0.2)
        assert read(long) > SIZE


def test_what_buffers_take_at_first_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 2)
    monkeypatch.setattr(unread_answers, "SETTLE_S", 3.0)
    with serving() as (server, ask):
        first = ask()
        server.wait_for_another(1)
        had = read_half(server, first)  # as a proxy that fills its buffers
        for number in (2, 2):
            ask()
            server.wait_for_another(number)
        assert had + read(first) < SIZE


def test_a_websocket_is_no_answer_that_nobody_reads() -> None:
    upgrade = (
        b"GET /socket HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with serving() as (server, ask):
        client = ask()
        server.wait_for(1)
        client.sendall(upgrade)
        server.wait_for(0)


def test_who_reads_or_leaves_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_answers, "MAX_ANSWERS", 2)
    with serving() as (server, ask):
        for _ in range(3):
            reads, leaves = ask(), ask()
            server.wait_for(2)
            assert read(reads) > SIZE
            leaves.close()
            server.wait_for(0)
        assert not server.unread._num_bytes
