"""Requests that reached no model are sent again, until a proxy that knows it is there."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.router.test_relay_faults import OK, Handler, bench, pieces
from truthgpt_serve.errors import ModelNotFoundError, UnavailableError
from truthgpt_serve.http.retriable import proxy_page
from truthgpt_serve.router.bodies.request_body import RequestBody


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


async def test_without_a_replica_it_is_sent_again_only_where_the_connection_was_kept() -> None:
    async with bench(answering([OK, proxy_page(), OK, proxy_page(), proxy_page()])) as relay:
        relay.running = False
        await relay.request()
        await relay.request()
        assert relay.body == b"{}{}"
        with pytest.raises(UnavailableError, match="has no running replica"):
            await relay.request()


@pytest.mark.parametrize("streams", [False, True])
async def test_a_model_that_is_gone_is_said_to_be_at_once(streams: bool) -> None:
    async with bench(answering([proxy_page()] * 2)) as relay:
        relay.exists = False
        body = RequestBody([b"{}"], 2, True, pieces()) if streams else None
        with pytest.raises(ModelNotFoundError):
            await relay.request(body)


async def test_other_connections_to_that_proxy_are_not_used_again() -> None:
    """Each of them would cost a request one more attempt."""
    connections = 0
    both = asyncio.Barrier(2)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        is_old, num_answers = connections <= 2, 0
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            if is_old and not num_answers:
                await both.wait()
            writer.write(proxy_page() if is_old and num_answers else OK)
            num_answers += 1

    async with bench(handler) as relay, asyncio.timeout(5):
        await asyncio.gather(relay.request(), relay.request())
        await relay.request()
        await relay.request()
    assert relay.body == b"{}" * 4
    assert connections == 3


async def test_what_is_fetched_comes_from_the_proxy_of_now() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()
        await reader.read(-1)

    async with bench(handler) as relay:
        for _ in range(2):
            assert await relay.pool.fetch(b"/-/routes") == (200, b"{}")
    assert connections == 2


async def test_what_streams_is_not_sent_again() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(proxy_page())
        await reader.read(-1)

    async with bench(handler) as relay:
        with pytest.raises(UnavailableError, match="takes no requests yet"):
            await relay.request(RequestBody([b"{"], 1, True, pieces()), length=b"1000")
    assert connections == 1
