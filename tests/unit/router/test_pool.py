"""Kept connections are used again, and closed when unused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.cycles import without_cycles
from truthgpt_serve.errors import UpstreamError
from truthgpt_serve.router import pool as module
from truthgpt_serve.router.pool import ConnectionPool

IDLE_S = 2.0


class Peer:
    """A server that answers every request the same, and knows its connections."""

    def __init__(self) -> None:
        self.num_accepted = 0
        self.num_open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_accepted += 1
        self.num_open += 1
        try:
            while await reader.readline():
                while await reader.readline() != b"\r\n":
                    pass
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except ConnectionError:
            pass
        finally:
            self.num_open -= 1
            writer.close()

    async def until_open(self, number: int, *, within_s: float = 5.0) -> None:
        async with asyncio.timeout(within_s):
            while self.num_open != number:
                await asyncio.sleep(0.01)


@pytest.fixture
async def peer() -> AsyncIterator[tuple[Peer, ConnectionPool]]:
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = ConnectionPool("127.0.0.1", port, connect_timeout_s=5)
    try:
        yield peer, pool
    finally:
        pool.close()
        server.close()
        await peer.until_open(0)


async def exchange(pool: ConnectionPool, num_together: int = 1) -> None:
    """Makes requests at the same time."""
    connections = [await pool.acquire() for _ in range(num_together)]
    for connection in connections:
        connection.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await connection.headers()
        while (await connection.read())[1]:
            pass
    for connection in connections:
        pool.release(connection)


async def test_a_kept_connection_is_used_again(peer: tuple[Peer, ConnectionPool]) -> None:
    server, pool = peer
    for _ in range(5):
        await exchange(pool)
    assert server.num_accepted == 1
    assert server.num_open == 1


async def test_a_closed_connection_leaves_no_cycles(peer: tuple[Peer, ConnectionPool]) -> None:
    server, pool = peer
    await exchange(pool)
    with without_cycles(1, "UpstreamConnection"):
        for _ in range(10):
            connection = await pool.acquire()
            connection.set_deadline(60, lambda: UpstreamError("late"))
            connection.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await connection.headers()
            connection.abort()
            pool.release(connection)
        del connection
        await server.until_open(0)
        await asyncio.sleep(0.05)  # our side of the last one has heard of its end


@pytest.mark.long("waits for limits of time")
async def test_idle_connections_are_closed_without_requests(
    peer: tuple[Peer, ConnectionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pool = peer
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", IDLE_S)
    await exchange(pool, num_together=4)
    await server.until_open(4)
    for _ in range(8):  # one goes on being used, for longer than the others may wait
        await asyncio.sleep(IDLE_S / 4)
        await exchange(pool)
    await server.until_open(1, within_s=IDLE_S)
    assert server.num_accepted <= 5  # a busy machine may be late once
    await server.until_open(0)


async def test_a_trailer_of_an_answer_is_no_header() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nx-one: 1\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + head)
        writer.write(b"1\r\nx\r\n0\r\nx-one: 2\r\nset-cookie: x\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = ConnectionPool("127.0.0.1", port, connect_timeout_s=5)
    try:
        connection = await pool.acquire()
        connection.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        _, headers = await connection.headers()
        while (await connection.read())[1]:
            pass
        assert headers == [(b"x-one", b"1"), (b"transfer-encoding", b"chunked")]
        pool.release(connection)
    finally:
        pool.close()
        server.close()


async def test_a_closed_pool_keeps_nothing(peer: tuple[Peer, ConnectionPool]) -> None:
    server, pool = peer
    await exchange(pool, num_together=3)
    await server.until_open(3)
    pool.close()
    await server.until_open(0)
