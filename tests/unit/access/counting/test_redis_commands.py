"""A real Redis that is far away, or answers and does not count; and addresses that are none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from tests.support.redis_server import RedisServer
from truthgpt_serve.access.counting import redis_counters
from truthgpt_serve.access.counting.charges import Charge
from truthgpt_serve.access.counting.redis_commands import ANSWER_S, _keys, is_address
from truthgpt_serve.access.counting.redis_counters import RedisCounters

LIMIT_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@asynccontextmanager
async def far_away(server: RedisServer, folder: Path, trip_s: float) -> AsyncIterator[str]:
    """Gives the address of a server whose answers come after so many seconds."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
    ) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(delay_s)
            writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_unix_connection(server.socket)
        writers.extend((writer, its_writer))
        tasks.append(asyncio.create_task(pass_on(its_reader, writer, trip_s)))
        tasks.append(asyncio.create_task(pass_on(reader, its_writer, 0)))

    listener = await asyncio.start_unix_server(connect, folder / "far.sock")
    yield f"unix://{folder}/far.sock"
    listener.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers:
        writer.close()
    await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)


async def leave(counters: RedisCounters) -> None:
    counters.close()
    if counters._task is not None:
        await asyncio.wait([counters._task], timeout=5)


@pytest.mark.parametrize("trip_s", [0.05, 0.15])
async def test_a_server_that_is_far_away_counts(
    server: RedisServer, tmp_path: Path, trip_s: float
) -> None:
    charge = Charge(f"far-{trip_s}", 1, 1000, None, runs=False)
    async with far_away(server, tmp_path, trip_s) as url:
        counters = RedisCounters(url)
        began_s = time.monotonic()
        first = await counters.take_all([charge])
        assert time.monotonic() - began_s < 10 * ANSWER_S  # the connection takes several trips
        async with asyncio.timeout(LIMIT_S):
            while not (found := await counters.take_all([charge])):
                await asyncio.sleep(0.01)
        assert counters.is_up
        assert found[0].used >= 1 + (first is not None)
        await leave(counters)


async def test_a_server_that_is_too_far_away_is_not_waited_for(
    server: RedisServer, tmp_path: Path
) -> None:
    charge = Charge("too far", 1, 1000, None, runs=False)
    async with far_away(server, tmp_path, 2 * ANSWER_S) as url:
        counters = RedisCounters(url)
        assert await counters.take_all([charge]) is None
        async with asyncio.timeout(LIMIT_S):
            while counters.is_up:
                await asyncio.sleep(0.01)
        began_s = time.monotonic()
        assert [await counters.take_all([charge]) for _ in range(100)] == [None] * 100
        assert time.monotonic() - began_s < 10 * ANSWER_S
        assert counters.num_missed == 101
        await leave(counters)


@pytest.mark.parametrize("which", [0, 1], ids=["minute", "running"])
async def test_a_server_that_answers_and_does_not_count_is_away_until_it_does(
    server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    which: int,
) -> None:
    monkeypatch.setattr(redis_counters, "RETRY_S", 0.05)
    charge = Charge(f"odd-{which}", 1, 1000, 50)
    foreign = _keys(charge.name)[which]
    with Redis.from_url(server.url) as client:
        client.set(foreign, "of another program")
        counters = RedisCounters(server.url)
        for _ in range(30):
            assert await counters.take_all([charge]) is None
            await asyncio.sleep(0.02)
        client.delete(foreign)
    async with asyncio.timeout(LIMIT_S):
        while await counters.take_all([charge]) is None:
            await asyncio.sleep(0.01)
    shown = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(shown) == 2
    assert "WRONGTYPE" in shown[0]
    assert "counted in quota_store again" in shown[1]
    await leave(counters)


def test_addresses() -> None:
    good = ("redis://", "redis://u:p@host:1/2?socket_timeout=1", "rediss://h", "unix:///a?db=1")
    assert all(map(is_address, good))
    bad = ("redis://:p/w@host", "redis://h:99999", "redis://[::1", "redis://h?no_option=1")
    assert not any(map(is_address, bad))
