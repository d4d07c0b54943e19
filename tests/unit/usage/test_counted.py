"""What a request used is added to the request whose task did the work."""

from __future__ import annotations

import asyncio

from truthgpt_serve.usage.counted import (
    Usage,
    add_audio,
    add_images,
    add_tokens,
    counting,
    current_usage,
)


async def work(number: int) -> None:
    add_tokens(number, 2 * number, cached=1)
    await asyncio.sleep(0)
    add_images(1, 0.5 * number)
    await asyncio.gather(asyncio.create_task(listen(number)))


async def listen(number: int) -> None:
    add_audio(number / 4)


async def serve(number: int) -> Usage:
    usage = Usage()
    with counting(usage):
        await work(number)
        assert current_usage() is usage
    return usage


async def test_requests_that_run_beside_each_other_count_apart() -> None:
    found = await asyncio.gather(*(serve(number) for number in range(20)))
    assert found == [Usage(n, 1, 2 * n, 1, 0.5 * n, n / 4) for n in range(20)]


def test_without_a_request_nothing_is_counted() -> None:
    add_tokens(1, 1)
    add_images(1, 1.0)
    add_audio(1.0)
    assert current_usage() is None
