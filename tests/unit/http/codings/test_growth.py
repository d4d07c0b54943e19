"""What compressed bodies may become, and what they may not cost."""

from __future__ import annotations

import asyncio
import gzip
import random
import threading
import tracemalloc
import zlib

import pytest

from tests.unit.http.codings.packing import MIB, bomb, whole
from truthgpt_serve.errors import OverloadedError, TooLargeError
from truthgpt_serve.http.codings.body import FREE_BYTES, MAX_GROWTH, decompress
from truthgpt_serve.http.codings.decoder import PIECE_BYTES
from truthgpt_serve.http.codings.growth import Grown


async def test_a_bomb_costs_neither_memory_nor_the_loops_time() -> None:
    data = bomb(2**30)
    ticks = 0
    done = asyncio.Event()

    async def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(TooLargeError, match="send it without compression"):
            await whole(data, "deflate", 8 * MIB)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        done.set()
        await ticker
    assert peak < 24 * MIB
    assert ticks > 0


async def test_growth_is_bounded_beyond_what_is_free() -> None:
    assert len(await whole(gzip.compress(bytes(FREE_BYTES), 1), "gzip")) == FREE_BYTES
    with pytest.raises(TooLargeError, match=f"larger than {FREE_BYTES} bytes without"):
        await whole(gzip.compress(bytes(FREE_BYTES + 1)), "gzip")
    noise = random.Random(3).randbytes(FREE_BYTES)
    for growth in (MAX_GROWTH - 1, MAX_GROWTH + 1):
        packer = zlib.compressobj(9)  # what is not noise takes up almost nothing
        packed = packer.compress(noise + bytes((growth - 1) * len(noise))) + packer.flush()
        if growth > MAX_GROWTH:
            with pytest.raises(TooLargeError, match=f"{len(packed)} bytes may become"):
                await whole(packed, "deflate")
        else:
            assert len(await whole(packed, "deflate")) == growth * len(noise)


async def test_all_bodies_together_are_bounded() -> None:
    grown = Grown(MIB)
    packed = gzip.compress(bytes(MIB))
    with grown.body() as growth:
        await decompress(packed, "gzip", 2**30, growth.reach)
        with grown.body() as second:
            with pytest.raises(OverloadedError, match="without compression"):
                await decompress(packed, "gzip", 2**30, second.reach)
            small = b"x" * PIECE_BYTES
            pieces = await decompress(gzip.compress(small), "gzip", 2**30, second.reach)
            assert b"".join(pieces) == small
        growth.release()
        with grown.body() as second:
            assert len(await decompress(packed, "gzip", 2**30, second.reach)) == 4
    with pytest.raises(OverloadedError):
        growth.reach(1)  # a thread whose request has ended goes on no further
    with grown.body() as growth:
        growth.reach(MIB)


async def test_only_what_a_body_grows_by_is_counted() -> None:
    noise = random.Random(3).randbytes(3 * MIB)
    packed = gzip.compress(noise + bytes(MIB - len(noise) // 1000))
    with Grown(MIB).body() as growth:
        assert len(await decompress(packed, "gzip", 2**30, growth.reach)) > 12


async def test_a_body_that_is_alone_too_much_need_not_be_tried_again() -> None:
    packed = gzip.compress(bytes(MIB))
    with (
        Grown(MIB // 2).body() as growth,
        pytest.raises(TooLargeError, match="over 524288 bytes longer"),
    ):
        await decompress(packed, "gzip", 2**30, growth.reach)


async def test_large_bodies_leave_the_loop() -> None:
    threads = []

    def reach(num_bytes: int) -> None:
        threads.append(threading.current_thread().name)

    noise = random.Random(1).randbytes(3 * MIB)
    for data in (noise, bytes(FREE_BYTES - 1)):  # many bytes, or what becomes many
        for first in (b"", gzip.compress(b"a")):
            threads.clear()
            await decompress(first + gzip.compress(data), "gzip", 2**30, reach)
            assert all(name.startswith("decompress") for name in threads[1:])
            assert len(threads) > 2
