"""Large request bodies at the router: no step of reading them keeps other requests waiting."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from truthgpt_serve.config import RouterConfig
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.bodies.request_body import BodyReader

MIB = 2**20
NUM_BYTES = 12 * MIB
NOISE = random.Random(1).randbytes(MIB).hex().encode()
"""What lets a compressed body become as long as `NUM_BYTES`."""


def body(begin: bytes, unit: bytes, end: bytes) -> bytes:
    return b'{"a": "%b", %b%b%b' % (NOISE, begin, unit * (NUM_BYTES // len(unit)), end)


BODIES: dict[str, bytes] = {
    "inner keys": body(b'"model": "m", "b": [', b'{"model":1},', b"1]}"),
    "inner keys, name last": body(b'"b": [', b'{"model":1},', b'1], "model": "m"}'),
    "deep keys, name last": body(b'"b": [', b'[[{"model":{"model":1}}]],', b'1], "model": "m"}'),
    "escaped keys": body(b'"model": "m", "b": [', b'{"\\u006dodel":1},', b"1]}"),
    "empty objects, name last": body(b'"b": [', b"{},", b'1], "model": "m"}'),
    "empty strings, name last": body(b'"b": [', b'"",', b'1], "model": "m"}'),
    "one string, name last": body(b'"b": "', b"x", b'", "model": "m"}'),
}


async def largest_step(work: Callable[[], Any]) -> tuple[float, float]:
    """Returns how long the loop worked in one go, and in all: of its thread's own time."""
    largest, before = 0.0, time.thread_time()

    async def tick() -> None:
        nonlocal largest, before
        while True:
            now = time.thread_time()
            largest, before = max(largest, now - before), now
            await asyncio.sleep(0)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    began = time.thread_time()
    await work()
    in_all = time.thread_time() - began
    await asyncio.sleep(0)
    ticker.cancel()
    return largest, in_all


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("content", BODIES.values(), ids=BODIES.keys())
async def test_a_large_body_is_read_in_small_steps(content: bytes, packed: bool) -> None:
    sent = zlib.compress(content, 1) if packed else content
    headers = [(b"content-encoding", b"deflate")] if packed else []
    pieces = [sent[at : at + 65536] for at in range(0, len(sent), 65536)]

    async def receive() -> Message:
        await asyncio.sleep(0)
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def read() -> None:
        reader = BodyReader(RouterConfig())
        async with reader.decoded({"type": "http", "headers": headers}, receive) as (scope, plain):
            model, found = await reader.read_model(scope, plain, None)
            assert model == "m"
            while found.more:
                message = await plain()
                found.watch(message["body"])
                found.more = message["more_body"]

    largest, in_all = await largest_step(read)
    assert largest < max(0.1, in_all / 3)
