"""An HAProxy that dies is started again at once by Ray Serve's own class, here with restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.haproxy_process import LIMIT_S
from tests.unit.cluster.haproxy.manager.managers import (
    is_answered,
    new_backend,
    running,
    wait_for_end,
    wait_for_other,
)
from truthgpt_serve.cluster.haproxy.manager.restarts import MAX_RESTARTS, restart_at_once
from truthgpt_serve.cluster.processes import read_process

QUIET_S = 2.0
"""How long nothing must happen where nothing is to be started."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_process_that_dies_is_started_again(tmp_path: Path, number: int) -> None:
    async with running(tmp_path) as api:
        pid = api._proc.pid
        os.kill(pid, number)
        other = await wait_for_other(api, pid)
        assert await api.is_running()
    assert read_process(other) is None


async def test_a_change_that_meets_a_dead_process_is_taken_up(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        pid = api._proc.pid
        api._proc.kill()
        await api._proc.wait()
        api.set_backend_configs({"http-new": new_backend()})
        await api.reload()
        other = api._proc.pid
        assert other != pid
        assert await api.is_running()
        await asyncio.sleep(QUIET_S)
        assert api._proc.pid == other
        assert list(await api.get_all_stats()) == ["http-new"]


async def test_a_change_replaces_a_process_once(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        first = api._proc.pid
        await api.reload()
        second = api._proc.pid
        await wait_for_end(first)
        await asyncio.sleep(QUIET_S)
        assert api._proc.pid == second != first
        os.kill(second, signal.SIGKILL)
        assert await wait_for_other(api, second) not in (first, second)


async def test_a_process_that_is_stopped_stays_away(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        await api.stop()
        await asyncio.sleep(QUIET_S)
        assert api._proc is None
        assert not await is_answered(api)


async def test_one_that_is_stopped_while_it_is_started_again_stays_away(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        os.kill(api._proc.pid, signal.SIGKILL)
        while api._spawn_seq == 1:
            await asyncio.sleep(0.01)
        await api.stop()
        deadline = time.monotonic() + LIMIT_S
        while api._proc is not None:
            assert time.monotonic() < deadline, f"process {api._proc.pid} serves"
            await asyncio.sleep(0.05)
        assert not await is_answered(api)


async def test_one_that_dies_again_and_again_is_left_to_ray(tmp_path: Path) -> None:
    async with running(tmp_path) as api:
        for _ in range(MAX_RESTARTS):
            pid = api._proc.pid
            os.kill(pid, signal.SIGKILL)
            await wait_for_other(api, pid)
        last = api._proc.pid
        os.kill(last, signal.SIGKILL)
        await asyncio.sleep(QUIET_S)
        assert api._proc.pid == last
        assert not await is_answered(api)


def test_a_release_of_ray_with_other_methods_is_named() -> None:
    class Moved:
        def stop(self) -> None:
            """The one that is left."""

    with pytest.raises(AttributeError, match=r"Moved has no .*_graceful_reload.*restarts\.py"):
        restart_at_once(Moved)
