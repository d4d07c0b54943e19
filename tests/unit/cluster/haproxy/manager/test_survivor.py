"""An HAProxy outlives its manager, and the next one takes it over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cluster.haproxy.manager.managers import (
    create_manager,
    is_answered,
    new_backend,
    running,
    wait_for_end,
    wait_for_other,
)
from truthgpt_serve.cluster.haproxy.manager.restarts import _life_of
from truthgpt_serve.cluster.haproxy.manager.survivor import UNKNOWN_STATUS, Survivor
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import read_process


def leave(api: Any) -> Any:
    """Has a manager do nothing any more, as if it had died; returns its HAProxy."""
    for watch in _life_of(api).watches:
        watch.cancel()
    return api._proc


@asynccontextmanager
async def left(folder: Path, port: int) -> AsyncIterator[Any]:
    """Yields the HAProxy that a manager has left running."""
    async with running(folder, port) as first:
        yield leave(first)


async def test_the_next_manager_takes_it_over(tmp_path: Path) -> None:
    """With a change meanwhile there is never a connection that is refused."""
    port, refused = free_port(), 0
    done = asyncio.Event()

    async def ask() -> None:
        nonlocal refused
        while not done.is_set():
            refused += not await is_answered(second)
            await asyncio.sleep(0.02)

    async with left(tmp_path, port) as process:
        assert os.getpgid(process.pid) == process.pid  # Ray ends its manager's group
        second = create_manager(tmp_path, port)
        asking = asyncio.create_task(ask())
        await second.start()
        try:
            assert second._proc.pid == process.pid
            assert second._is_running()
            second.set_backend_configs({"http-new": new_backend()})
            await second.reload()
            assert second._proc.pid != process.pid
            assert list(await second.get_all_stats()) == ["http-new"]
            await wait_for_end(process.pid)
        finally:
            done.set()
            await asking
            await second.stop()
    assert refused == 0


async def test_one_that_dies_later_is_started_again(tmp_path: Path) -> None:
    port = free_port()
    async with left(tmp_path, port) as process, running(tmp_path, port) as second:
        assert isinstance(second._proc, Survivor)
        os.kill(process.pid, signal.SIGKILL)
        await wait_for_other(second, process.pid)
        assert not isinstance(second._proc, Survivor)


async def test_one_that_was_taken_over_is_ended_with_its_manager(tmp_path: Path) -> None:
    port = free_port()
    async with left(tmp_path, port) as process:
        async with running(tmp_path, port) as second:
            survivor = second._proc
            assert survivor.returncode is None
        assert survivor.returncode == UNKNOWN_STATUS
        assert await survivor.wait() == UNKNOWN_STATUS
        survivor.kill()  # nothing is left to be ended
        assert read_process(process.pid) is None


async def test_one_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    """It holds the port: each second connection would be its own."""
    port = free_port()
    async with left(tmp_path, port) as process:
        os.kill(process.pid, signal.SIGSTOP)
        command = ["tail", "-f", str(tmp_path / "haproxy.cfg")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as reader:
            async with running(tmp_path, port) as second:
                assert second._proc.pid != process.pid
                await wait_for_end(process.pid)
                assert all([await is_answered(second) for _ in range(20)])
            assert reader.poll() is None  # it only looks at the file
            reader.kill()


async def test_the_admin_socket_of_another_program_is_not_taken_over(tmp_path: Path) -> None:
    async with left(tmp_path / "other", free_port()):
        (tmp_path / "admin.sock").symlink_to(tmp_path / "other" / "admin.sock")
        port = free_port()
        async with running(tmp_path, port) as second:
            assert not isinstance(second._proc, Survivor)
            assert await is_answered(second)


def test_a_process_that_has_ended_is_none(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        Survivor(pid, str(tmp_path / "log"))
