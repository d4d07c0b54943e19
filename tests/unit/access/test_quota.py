"""Keys are held to their limits."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.quota import Quota
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


def test_a_key_without_limits_is_not_counted(quota: Quota) -> None:
    assert quota.admit(Identity("team")) is None


def test_requests_of_a_minute(quota: Quota, clock: Clock) -> None:
    team = key(requests_per_minute=2)
    first = quota.admit(team)
    assert first is not None
    assert dict(first.headers) == {
        b"x-ratelimit-limit-requests": b"2",
        b"x-ratelimit-remaining-requests": b"1",
        b"x-ratelimit-reset-requests": b"60s",
    }
    clock.now_s += 10
    quota.admit(team)
    with pytest.raises(RateLimitError) as refused:
        quota.admit(team)
    assert refused.value.message == (
        "The key 'team' may send 2 requests in a minute; try again in 51 s"
    )
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after_s == 51
    assert dict(refused.value.headers)[b"x-ratelimit-remaining-requests"] == b"0"
    clock.now_s += 51
    assert quota.admit(team) is not None


def test_requests_at_the_same_time(quota: Quota) -> None:
    team = key(max_concurrent=1)
    lease = quota.admit(team)
    assert lease is not None
    assert lease.headers == []
    with pytest.raises(RateLimitError, match="may have 1 requests at the same time"):
        quota.admit(team)
    lease.end()
    lease.end()
    again = quota.admit(team)
    assert again is not None
    with pytest.raises(RateLimitError):
        quota.admit(team)


def test_what_is_refused_for_one_limit_does_not_count_for_the_other(quota: Quota) -> None:
    team = key(requests_per_minute=2, max_concurrent=1)
    lease = quota.admit(team)
    assert lease is not None
    with pytest.raises(RateLimitError, match="at the same time"):
        quota.admit(team)
    lease.end()
    assert quota.admit(team) is not None


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / f"truthgpt-quota-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    quota = Quota(tmp_path / "keys.yaml", clock=clock)
    assert "counts the requests of keys for itself alone" in caplog.text
    assert list(folder.iterdir()) == []
    assert quota.admit(key(requests_per_minute=1)) is not None
    with pytest.raises(RateLimitError):
        quota.admit(key(requests_per_minute=1))
    quota.close()
