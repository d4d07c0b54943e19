"""Requests that reached no model are sent again, until a proxy that knows it is there."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.test_relay_faults import OK, Handler, bench, pieces
from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.router.upload import RequestBody
from truthgpt_serve.unreached import proxy_page


def answering(answers: list[bytes]) -> Handler:
    """Returns a proxy that gives one answer after the other, on as many connections as come."""
    rest = list(answers)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            writer.write(rest.pop(0))
            await writer.drain()

    return handler


@pytest.mark.parametrize("num_unreached", [1, 2, 4])
async def test_it_is_sent_again_on_a_new_connection(num_unreached: int) -> None:
    connections = 0
    handler = answering([OK, *[proxy_page()] * num_unreached, OK])

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await handler(reader, writer)

    async with bench(counted) as relay:
        await relay.request()
        await relay.request()
    assert relay.body == b"{}{}"
    assert connections == 1 + num_unreached


async def test_after_some_attempts_the_client_may_try() -> None:
    async with bench(answering([proxy_page()] * 5)) as relay:
        with pytest.raises(UnavailableError, match="takes no requests yet") as caught:
            await relay.request()
    assert caught.value.retry_after_s == 1
    assert relay.sent == []


async def test_without_a_replica_it_is_not_sent_again() -> None:
    async with bench(answering([proxy_page()])) as relay:
        relay.running = False
        with pytest.raises(UnavailableError, match="has no running replica"):
            await relay.request()


async def test_what_streams_is_not_sent_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(proxy_page())
        await reader.read(-1)

    async with bench(handler) as relay:
        with pytest.raises(UnavailableError, match="takes no requests yet"):
            await relay.request(RequestBody([b"{"], 1, True, pieces()), length=b"1000")
