"""Keys are held to their limits."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.access.units import TOKENS
from truthgpt_serve.errors import RateLimitError


@dataclass
class Clock:
    """A time that stands still."""

    now_s: float = 1e9

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def quota(tmp_path: Path, clock: Clock) -> Iterator[Quota]:
    quota = Quota(tmp_path / "keys.yaml", clock=clock)
    yield quota
    quota.close()


def key(**limits: int) -> Identity:
    return Identity("team", limits=Limits(**limits))


async def test_a_key_without_limits_is_not_counted(quota: Quota) -> None:
    assert await quota.admit(Identity("team")) is None


async def test_requests_of_a_minute(quota: Quota, clock: Clock) -> None:
    team = key(requests_per_minute=2)
    first = await quota.admit(team)
    assert first is not None
    assert dict(first.headers) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"1",
        b"x-ratelimit-reset-requests": b"60s",
    }
    clock.now_s += 10
    await quota.admit(team)
    with pytest.raises(RateLimitError) as refused:
        await quota.admit(team)
    assert refused.value.reason == "requests"
    assert refused.value.message == (
        "The key 'team' may send 2 requests in a minute; try again in 51 s"
    )
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after_s == 51
    assert dict(refused.value.headers)[b"x-ratelimit-remaining-requests"] == b"0"
    clock.now_s += 51
    assert await quota.admit(team) is not None


async def test_requests_at_the_same_time(quota: Quota) -> None:
    team = key(max_concurrent=1)
    lease = await quota.admit(team)
    assert lease is not None
    assert lease.headers == []
    with pytest.raises(RateLimitError, match="may have 1 requests at the same time") as refused:
        await quota.admit(team)
    assert refused.value.reason == "concurrent"
    lease.end()
    lease.end()
    again = await quota.admit(team)
    assert again is not None
    with pytest.raises(RateLimitError):
        await quota.admit(team)


async def test_what_is_refused_for_one_limit_does_not_count_for_the_other(quota: Quota) -> None:
    team = key(requests_per_minute=2, max_concurrent=1)
    lease = await quota.admit(team)
    assert lease is not None
    with pytest.raises(RateLimitError, match="at the same time"):
        await quota.admit(team)
    lease.end()
    assert await quota.admit(team) is not None


async def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"truthgpt-quota-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    quota = Quota(tmp_path / "keys.yaml", clock=clock)
    assert "counts the requests of keys for itself alone" in caplog.text
    assert list(folder.iterdir()) == []
    assert await quota.admit(key(requests_per_minute=1)) is not None
    with pytest.raises(RateLimitError):
        await quota.admit(key(requests_per_minute=1))
    quota.close()


async def test_several_machines_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RedisServer(tmp_path)
    server.start()
    machines = []
    for name in ("a", "b"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        (tmp_path / name).mkdir()
        machines.append(Quota(tmp_path / "keys.yaml", "story", store=server.url))
    team = key(requests_per_minute=100, tokens_per_minute=1000)
    admitted, waits_s = [0, 0], list[float]()

    async def ask(which: int) -> None:
        for _ in range(25):
            try:
                assert await machines[which].admit(team) is not None
                admitted[which] += 1
            except RateLimitError as error:
                waits_s.append(error.retry_after_s or 0)

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(ask(number % 2) for number in range(20)))
        assert (sum(admitted), len(waits_s)) == (100, 400)
        assert 1 <= min(waits_s) <= max(waits_s) <= 62
        assert min(admitted) > 0
        first = await machines[0].reserve(team, TOKENS, 900)
        assert first is not None
        with pytest.raises(RateLimitError, match="use 1000 tokens in a minute"):
            await machines[1].reserve(team, TOKENS, 200)
        first.settle(50)
        assert await machines[0].reserve(team, TOKENS, 200) is not None
        last = await machines[1].reserve(team, TOKENS, 200)
        assert last is not None
        assert dict(last.headers)[b"x-ratelimit-remaining-tokens"] == b"550"
        server.kill()  # each counts for itself, on top of what all have used
        for machine in machines:
            with pytest.raises(RateLimitError, match="100 requests in a minute"):
                await machine.admit(team)
            assert await machine.admit(replace(team, name="other")) is not None
    finally:
        server.kill()
        for machine in machines:
            machine.close()
        await asyncio.sleep(0.1)  # their tasks end
