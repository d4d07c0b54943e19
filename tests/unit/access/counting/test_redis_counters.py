"""Counts that several machines share in a real Redis, which may be away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from tests.support.redis_server import RedisServer
from truthgpt_serve.access.counting import redis_commands, redis_counters
from truthgpt_serve.access.counting.charges import BUCKET_S, Charge, Standing
from truthgpt_serve.access.counting.own_counts import OwnCounts
from truthgpt_serve.access.counting.redis_commands import ANSWER_S
from truthgpt_serve.access.counting.redis_counters import RedisCounters
from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.errors import RateLimitError

SECRET = "sesame-of-the-test"
LIMIT_S = 60
TAKE = """
import asyncio, sys
from truthgpt_serve.access.counting.charges import Charge
from truthgpt_serve.access.counting.redis_counters import RedisCounters

async def main():
    counters = RedisCounters(sys.argv[1])
    while await counters.take_all([Charge("first", 0, None, runs=False)]) is None:
        await asyncio.sleep(0.05)  # a slow machine is still starting
    charge = Charge("team", 1, 100, None, runs=False)
    found = await asyncio.gather(*(counters.take_all([charge]) for _ in range(int(sys.argv[2]))))
    print(sum(standing[0].fits for standing in found), flush=True)

asyncio.run(main())
"""
RUN = """
import asyncio, sys
from truthgpt_serve.access.counting.charges import Charge
from truthgpt_serve.access.counting.redis_counters import RedisCounters

async def main():
    counters = RedisCounters(sys.argv[1])
    while (found := await counters.take_all([Charge("team", 1, None, 2)])) is None:
        await asyncio.sleep(0.05)  # a slow machine is still starting
    print(found[0].running, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), SECRET)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def counters(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisCounters]:
    monkeypatch.setattr(redis_counters, "RETRY_S", 0.05)
    if server.process is None:
        server.start()
    found = RedisCounters(server.url)
    yield found
    await leave(found)


async def leave(counters: RedisCounters) -> None:
    counters.close()
    if counters._task is not None:
        await asyncio.wait([counters._task], timeout=5)
        assert counters._task.done()


async def take_all(counters: RedisCounters, *charges: Charge) -> list[Standing]:
    """Asks again where a slow machine had no answer in time."""
    async with asyncio.timeout(LIMIT_S):
        while (found := await counters.take_all(charges)) is None:
            await asyncio.sleep(0.02)
    return found


async def take(counters: RedisCounters, charge: Charge) -> Standing:
    return (await take_all(counters, charge))[0]


async def until(counters: RedisCounters, is_up: bool) -> None:
    async with asyncio.timeout(LIMIT_S):
        while counters.is_up is not is_up:
            await asyncio.sleep(0.01)


def name_of(request: pytest.FixtureRequest) -> str:
    return request.node.name  # type: ignore[no-any-return]


async def test_a_minute(counters: RedisCounters, request: pytest.FixtureRequest) -> None:
    charge = Charge(name_of(request), 3, 7, None, runs=False)
    used = []
    for _ in range(4):
        found = await take(counters, charge)
        used.append((found.used, found.fits))
    assert used == [(3, True), (6, True), (6, False), (6, False)]
    assert 60 < found.wait_s + BUCKET_S <= 61 + BUCKET_S
    assert found.reset_s == pytest.approx(found.wait_s, abs=1)


async def test_all_or_nothing(counters: RedisCounters, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    wide = Charge(f"{name}\0a", 1, 10, 5)
    narrow = Charge(f"{name}\0b", 2, 1, None)
    found = await take_all(counters, wide, narrow)
    assert [standing.fits for standing in found] == [True, False]
    alone = await take(counters, wide)
    assert (alone.used, alone.running) == (1, 1)


async def test_what_is_refused_for_what_runs_does_not_count(
    counters: RedisCounters, request: pytest.FixtureRequest
) -> None:
    charge = Charge(name_of(request), 1, 10, 1)
    assert (await take(counters, charge)).used == 1
    assert [(await take(counters, charge)).running for _ in range(3)] == [-1] * 3
    counters.finish(charge.name, 0)
    again = await take(counters, charge)
    assert (again.used, again.running) == (2, 1)


async def test_what_is_known_later(counters: RedisCounters, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    charge = Charge(name, 300, 1000, None, runs=False)
    then_s = time.time()
    await take_all(counters, charge)
    counters.correct(name, -250, then_s, time.time())
    counters.correct(name, 25, then_s, time.time())
    found = await take(counters, Charge(name, 0, None, None, runs=False))
    assert found.used == 75
    counters.correct(name, -1000, then_s, time.time())  # never below nothing
    found = await take(counters, Charge(name, 5, None, None, runs=False))
    assert 0 < found.used <= 30


async def test_two_machines_share_a_minute(server: RedisServer, counters: RedisCounters) -> None:
    command = [sys.executable, "-c", TAKE, server.url, "90"]
    processes = [
        await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE) for _ in range(3)
    ]
    async with asyncio.timeout(LIMIT_S):
        printed = [(await process.communicate())[0] for process in processes]
    assert sum(int(text) for text in printed) == 100


async def test_what_runs_on_several_machines(
    server: RedisServer, counters: RedisCounters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_commands, "LEASE_MS", "1500")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, server.url, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).strip() == b"1"
    charge = Charge("team", 1, None, 2)
    second = await take(counters, charge)
    third = await take(counters, charge)
    assert (second.running, third.running) == (2, -1)
    counters.finish("team", 0)
    again = await take(counters, charge)
    assert again.running == 2
    process.kill()  # its lease is 30 s, and it says nothing any more
    await process.wait()
    still = await take(counters, charge)
    assert still.running == -1


async def test_who_leaves_takes_back_what_ran(
    server: RedisServer, counters: RedisCounters, request: pytest.FixtureRequest
) -> None:
    charge, other = Charge(name_of(request), 1, None, 1), RedisCounters(server.url)
    held = await take(other, charge)
    assert held.running == 1
    await leave(other)
    free = await take(counters, charge)
    assert free.running == 1


async def test_a_process_that_died_is_forgotten(
    server: RedisServer,
    counters: RedisCounters,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    charge, other = Charge(name_of(request), 1, None, 1), RedisCounters(server.url)
    monkeypatch.setattr(redis_commands, "LEASE_MS", "300")
    await take_all(other, charge)
    held = await take(counters, charge)
    assert held.running == -1
    await asyncio.sleep(0.4)  # longer than its lease: it says nothing, as a dead one
    free = await take(counters, charge)
    assert free.running == 1
    await leave(other)


async def test_a_client_that_leaves_while_it_waits(
    counters: RedisCounters, request: pytest.FixtureRequest
) -> None:
    charge = Charge(name_of(request), 1, 5, 1)
    await take_all(counters, Charge(f"{charge.name}-", 1, 5, 1))
    task = asyncio.create_task(counters.take_all([charge]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = await take(counters, charge)
            if found.running == 1:
                break
    assert found.used == 1


async def test_a_killed_server_that_returns(
    server: RedisServer, counters: RedisCounters, caplog: pytest.LogCaptureFixture
) -> None:
    charge = Charge("killed", 1, 5, 3)
    await take_all(counters, charge)
    server.kill()
    assert await counters.take_all([charge]) is None
    await until(counters, is_up=False)
    began_s = time.monotonic()
    for _ in range(100):
        assert await counters.take_all([charge]) is None
    assert time.monotonic() - began_s < 50 * ANSWER_S  # nobody waits for it
    assert counters.num_missed >= 101
    server.start()
    await until(counters, is_up=True)
    found = await take(counters, charge)
    assert found.used == 2  # it forgot its counts, and was told them
    assert found.running == 2  # what runs is said again
    # A replica's log has only warnings and what is worse.
    shown = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    away = sum("each machine counts for itself" in line for line in shown)
    assert away >= 1  # a busy machine may be late with an answer, which is taken for another
    assert sum("counted in quota_store again" in line for line in shown) == away
    assert not any(SECRET in line for line in shown)


async def test_a_server_that_hangs(server: RedisServer, counters: RedisCounters) -> None:
    charge = Charge("hangs", 1, 50, 3)
    await take_all(counters, charge)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        found = await asyncio.gather(*(counters.take_all([charge]) for _ in range(300)))
        assert time.monotonic() - began_s < 100 * ANSWER_S
        assert found == [None] * 300
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await until(counters, is_up=True)
    async with asyncio.timeout(LIMIT_S):
        while not (found := [await counters.take_all([charge])])[0]:
            await asyncio.sleep(0.01)
    assert found[0][0].running == 2


async def test_a_task_that_is_cancelled_ends(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `asyncio.run` does it at its end, also where a library swallows it."""
    counters, follow = RedisCounters(server.url), RedisCounters._follow

    async def swallow(self: RedisCounters, client: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await follow(self, client)

    monkeypatch.setattr(RedisCounters, "_follow", swallow)
    await take(counters, Charge("cancelled", 1, 5, 1))
    assert counters._task is not None
    counters._task.cancel()
    await asyncio.wait([counters._task], timeout=5)
    assert counters._task.done()


async def test_a_wrong_password(
    server: RedisServer, counters: RedisCounters, caplog: pytest.LogCaptureFixture
) -> None:
    other = RedisCounters(server.url.replace(SECRET, "another-secret"))
    assert await other.take_all([Charge("team", 1, 5, None)]) is None
    assert not other.is_up
    await leave(other)
    assert "WRONGPASS" in caplog.text or "invalid username-password" in caplog.text
    assert "another-secret" not in caplog.text


async def test_a_cause_that_comes_later_is_said_too(
    server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counters, "RETRY_S", 0.05)
    counters = RedisCounters(server.url)
    charge = Charge("later", 1, 1000, None, runs=False)
    with Redis.from_url(server.url) as client:
        await wait_until_counted(counters, charge)
        caplog.clear()  # a slow machine may have been late
        client.config_set("requirepass", "changed-meanwhile")
        try:
            client.client_kill_filter(_type="normal", skipme=True)
            async with asyncio.timeout(10):
                while "WRONGPASS" not in caplog.text and "username-password" not in caplog.text:
                    await counters.take_all([charge])
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # it is asked some more times
        finally:
            client.config_set("requirepass", SECRET)
    await wait_until_counted(counters, charge)
    shown = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(shown) == len(set(shown)) <= 4
    assert "ConnectionError" in shown[0]
    assert "counted in quota_store again" in shown[-1]
    assert SECRET not in caplog.text
    await leave(counters)


async def wait_until_counted(counters: RedisCounters, charge: Charge) -> None:
    async with asyncio.timeout(LIMIT_S):
        while await counters.take_all([charge]) is None:
            await asyncio.sleep(0.01)


async def test_more_than_it_takes(counters: RedisCounters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_counters, "MAX_WAITING", 10)
    charge = Charge("flood", 1, None, None, runs=False)
    found = await asyncio.gather(*(counters.take_all([charge]) for _ in range(30)))
    assert sum(each is None for each in found) == 20
    assert counters.is_up


async def test_nothing_is_left_behind(
    server: RedisServer, counters: RedisCounters, request: pytest.FixtureRequest
) -> None:
    from redis import Redis

    await take_all(counters, Charge(name_of(request), 1, 5, 3))
    with Redis.from_url(server.url) as client:
        keys = client.keys(f"{redis_commands.PREFIX}*")
        assert isinstance(keys, list)
        assert keys
        assert all(0 < client.pttl(key) <= 61_000 for key in keys)
        assert not any(name_of(request).encode() in key for key in keys)


def test_an_address_is_not_shown() -> None:
    from truthgpt_serve.access.settings import Auth

    assert SECRET not in repr(Auth("keys.yaml", quota_store=f"redis://:{SECRET}@host"))


KILLED_LIMIT = 200


async def flood(quota: Quota, until: asyncio.Event) -> list[float]:
    """Asks for far more than the limit; returns when each request was let in."""
    identity = Identity("team", limits=Limits(requests_per_minute=KILLED_LIMIT))
    let_in = []
    while not until.is_set():
        with contextlib.suppress(RateLimitError):
            await quota.admit(identity)
            let_in.append(time.monotonic())
        await asyncio.sleep(0.005)
    return let_in


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("before_s", [0.2, 3.0], ids=["half used", "all used"])
async def test_a_server_that_returns_empty_is_told_what_was_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_s: float
) -> None:
    """Two machines: nearly the limit, beside what is let in while it is away."""
    monkeypatch.setattr(redis_counters, "RETRY_S", 0.2)
    server = RedisServer(tmp_path, SECRET)
    server.start()
    quotas = [Quota(tmp_path / name / "keys.yaml", "m", store=server.url) for name in ("a", "b")]
    try:
        ended = asyncio.Event()
        tasks = [asyncio.create_task(flood(quota, ended)) for quota in quotas]
        await asyncio.sleep(before_s)
        server.kill()
        killed_s = time.monotonic()
        await asyncio.sleep(1)
        server.start()
        for quota in quotas:
            assert quota.shared is not None
            await until(quota.shared, is_up=True)
        back_s = time.monotonic()
        await asyncio.sleep(2)
        ended.set()
        let_in = sorted(itertools.chain(*await asyncio.gather(*tasks)))
        assert let_in[-1] - let_in[0] < 55
    finally:
        for quota in quotas:
            quota.close()
        server.kill()
    away = sum(killed_s <= each <= back_s for each in let_in)
    assert len(let_in) - away <= 1.1 * KILLED_LIMIT
    assert len(let_in) >= KILLED_LIMIT
    assert len(let_in) <= 2 * KILLED_LIMIT


async def test_a_server_that_was_emptied_is_told_too(
    server: RedisServer, counters: RedisCounters
) -> None:
    from redis import Redis

    charge = Charge("emptied", 1, 20, None, runs=False)
    for _ in range(8):
        assert (await take(counters, charge)).fits
    with Redis.from_url(server.url) as client:
        client.flushall()
    async with asyncio.timeout(LIMIT_S):
        while (await take(counters, Charge("emptied", 0, None, runs=False))).used < 8:
            await asyncio.sleep(0.05)


async def test_a_server_that_kept_its_counts_is_told_only_what_it_missed(
    server: RedisServer, counters: RedisCounters
) -> None:
    charge = Charge("kept", 1, 100, None, runs=False)
    for _ in range(8):
        await take(counters, charge)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        assert await counters.take_all([charge]) is None
        await until(counters, is_up=False)
        counters.note("kept", 3, time.time(), time.time())
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await until(counters, is_up=True)
    # It may have counted the one that nobody waited for.
    assert (await take(counters, charge)).used in (8 + 3 + 1, 8 + 3 + 2)


async def admitted(quota: Quota, identity: Identity, number: int) -> int:
    let_in = 0
    for _ in range(number):
        with contextlib.suppress(RateLimitError):
            await quota.admit(identity)
            let_in += 1
    return let_in


async def test_what_the_server_was_told_does_not_count_twice_when_it_is_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counters, "RETRY_S", 0.05)
    identity = Identity("team", limits=Limits(requests_per_minute=20))
    server = RedisServer(tmp_path, SECRET)
    server.start()
    quota = Quota(tmp_path / "keys.yaml", "m", store=server.url)
    shared = quota.shared
    assert shared is not None
    try:
        assert await admitted(quota, identity, 2) == 2
        server.kill()
        await until(shared, is_up=False)
        assert await admitted(quota, identity, 8) == 8
        server.start()
        await until(shared, is_up=True)
        assert await admitted(quota, identity, 2) == 2
        server.kill()
        await until(shared, is_up=False)
        assert await admitted(quota, identity, 12) in (8, 9)  # of what is known a part gets old
    finally:
        quota.close()
        server.kill()


def test_what_comes_while_the_server_is_told_is_told_the_next_time() -> None:
    own = OwnCounts()
    own.add("a", 2, 10, is_told=False)
    with own.telling():
        own.add("a", 3, 10, is_told=False)
    assert own.take_told() == [("a", {20: 2})]
    with contextlib.suppress(TimeoutError), own.telling():
        own.add("a", 4, 11, is_told=False)
        raise TimeoutError
    assert own.to_tell(is_lost=False) == {"a": {20: 3, 22: 4}}
    assert own.take_told() == []
