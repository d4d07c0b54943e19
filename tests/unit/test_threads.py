"""An event loop in a thread: what the code on it does must not end it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from truthgpt_serve.threads import LoopThread

LIMIT_S = 20


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread("sample")
    yield thread
    thread.close(LIMIT_S)
    assert not thread._thread.is_alive()


async def exit_in_task() -> None:
    async def leave() -> None:
        sys.exit(3)

    await asyncio.wait([asyncio.create_task(leave())])


async def exit_in_callback() -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.05)


async def interrupt() -> None:
    async def leave() -> None:
        raise KeyboardInterrupt

    await asyncio.wait([asyncio.create_task(leave())])


async def stop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (exit_in_task, "SystemExit"),
        (exit_in_callback, "SystemExit"),
        (interrupt, "KeyboardInterrupt"),
        (stop, None),
    ],
)
def test_what_a_model_does_on_its_loop_does_not_end_it(
    end: Callable[[], Coroutine[Any, Any, None]],
    name: str | None,
    thread: LoopThread,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = thread.submit(asyncio.sleep(0.2, "other"))
    thread.submit(end()).result(LIMIT_S)
    assert other.result(LIMIT_S) == "other"
    assert thread.submit(asyncio.sleep(0, "next")).result(LIMIT_S) == "next"
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    said = f"a task or callback of the model raised {name}; its event loop goes on"
    assert errors[:1] == ([said] if name else [])
