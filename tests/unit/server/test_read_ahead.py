"""What is read while nobody asks is given in order, bounded, and tells when the client leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from truthgpt_serve.http.asgi import LEAVING_KEY, Message
from truthgpt_serve.http.connection import ClientGoneError, Connection
from truthgpt_serve.server.read_ahead import KEPT_BYTES, ReadAhead

WAIT_S = 10.0
GONE: Message = {"type": "http.disconnect"}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """A connection: what its client sent, and then waits for it."""

    def __init__(self, *messages: Message | Exception) -> None:
        self.left = asyncio.Event()
        self.num_given = 0
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.give(*messages)

    def give(self, *messages: Message | Exception) -> None:
        for message in messages:
            self._messages.put_nowait(message)

    async def receive(self) -> Message:
        message = await self._messages.get()
        self.num_given += 1
        if isinstance(message, Exception):
            raise message
        return message

    def leave(self) -> None:
        self.left.set()


async def test_before_it_begins_it_reads_when_asked() -> None:
    server = Server(piece(b"a"), piece(b"b"))
    client = ReadAhead(server.receive)
    assert not client.is_begun
    assert (await client())["body"] == b"a"
    await asyncio.sleep(0)
    assert server.num_given == 1


async def test_nothing_is_lost_and_the_order_stays() -> None:
    bodies = [b"%d" % number for number in range(50)]
    server = Server(*map(piece, bodies[:20]))
    client = ReadAhead(server.receive)
    first = [(await client())["body"] for _ in range(5)]
    client.begin(server.leave)
    later = [piece(body) for body in bodies[20:]]
    asyncio.get_running_loop().call_later(0.02, lambda: server.give(*later, GONE))
    rest = [(await client())["body"] for _ in range(45)]
    assert first + rest == bodies
    assert await client() == await client() == GONE


@pytest.mark.parametrize("end", [GONE, ConnectionResetError("reset")])
async def test_a_client_that_leaves_is_told_of_once(end: Any) -> None:
    told = []
    server = Server(piece(b"a", more=False), end)
    client = ReadAhead(server.receive)
    client.begin(lambda: told.append(1))
    for _ in range(5):
        await asyncio.sleep(0)
    assert told == [1]
    assert (await client())["body"] == b"a"
    assert await client() == GONE
    assert told == [1]


async def test_one_who_waits_hears_it_and_one_that_gives_up_takes_nothing() -> None:
    server = Server()
    client = ReadAhead(server.receive)
    client.begin(server.leave)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client(), 0.01)
    waiting = [asyncio.create_task(client()) for _ in range(2)]
    server.give(piece(b"a"), GONE)
    found = await asyncio.wait_for(asyncio.gather(*waiting), WAIT_S)
    assert [message.get("body") for message in found] == [b"a", None]


async def test_a_body_that_nobody_takes_is_read_up_to_a_bound() -> None:
    size = KEPT_BYTES // 8
    server = Server(*[piece(bytes([number]) * size) for number in range(40)])
    client = ReadAhead(server.receive)
    client.begin(server.leave)
    await asyncio.sleep(0.05)
    assert server.num_given == 9  # the one that goes beyond it is the last
    taken = [(await client())["body"][0] for _ in range(40)]
    assert taken == list(range(40))
    server.give(GONE)
    await asyncio.wait_for(server.left.wait(), WAIT_S)


async def test_closed_it_reads_no_further() -> None:
    server = Server()
    client = ReadAhead(server.receive)
    client.begin(server.leave)
    await asyncio.sleep(0)
    client.close()
    client.close()
    await asyncio.sleep(0)
    server.give(GONE)
    await asyncio.sleep(0.01)
    assert (server.num_given, server.left.is_set()) == (0, False)


async def test_closed_it_keeps_nobody_waiting() -> None:
    server = Server()
    client = ReadAhead(server.receive)
    client.begin(server.leave)
    waiting = asyncio.create_task(client())
    await asyncio.sleep(0)
    client.close()
    assert await asyncio.wait_for(waiting, WAIT_S) == GONE
    assert not server.left.is_set()


async def test_a_guard_needs_no_task_where_leaving_is_told() -> None:
    leaving: set[Any] = set()
    scope = {"type": "http", "path": "/", "headers": [], LEAVING_KEY: leaving}
    server = Server()

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def serve() -> None:
        async with Connection(scope, server.receive, send).guard(WAIT_S):
            await asyncio.sleep(WAIT_S)

    task = asyncio.create_task(serve())
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    assert len(leaving) == 1
    assert before == {task, asyncio.current_task()}
    for leave in tuple(leaving):
        leave()
    with pytest.raises(ClientGoneError):
        await asyncio.wait_for(task, WAIT_S)
    assert not leaving
