from __future__ import annotations

import asyncio
import threading

import pytest

from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.server.execution.threads import BoundedExecutor


async def test_a_full_queue_says_whose_it_is_and_has_room_again_afterwards() -> None:
    executor = BoundedExecutor("recordings", num_threads=1, max_waiting=2)
    go_on = threading.Event()

    def work() -> str:
        assert go_on.wait(20)
        return threading.current_thread().name

    running = [asyncio.create_task(executor.run(work)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as caught:
        await executor.run(work)
    assert str(caught.value) == (
        "The queue of recordings is full: 2 requests run or wait; try again in 1 s"
    )
    go_on.set()
    assert await asyncio.gather(*running) == ["recordings_0", "recordings_0"]
    assert await executor.run(work) == "recordings_0"
    executor.close()


async def test_errors_pass_and_free_their_place() -> None:
    executor = BoundedExecutor("image files", max_waiting=1)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await executor.run(lambda: 1 / 0)
    executor.close()
    assert (await executor.run(lambda: threading.current_thread().name)).startswith("image-files")
    executor.close()
