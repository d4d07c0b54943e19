"""Fast streams share writes: nothing is lost, reordered, held too long or sent after the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest

from truthgpt_serve.http.coalescing import MAX_HELD_BYTES, NUM_AT_ONCE, JoinedStreams

INTERVAL_S = 0.02
Message = MutableMapping[str, Any]
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


class Client:
    """Takes messages as a server would; notes when they came."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.writes: list[tuple[float, bytes, bool]] = []
        self.status: int | None = None
        self._delay_s = delay_s
        self._busy = False

    async def send(self, message: Message) -> None:
        assert not self._busy, "two writes at the same time"
        self._busy = True
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        self._busy = False
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        now_s = asyncio.get_running_loop().time()
        self.writes.append((now_s, message.get("body", b""), message.get("more_body", False)))

    @property
    def body(self) -> bytes:
        return b"".join(body for _, body, _ in self.writes)


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def run(
    pieces: Callable[[Callable[[Message], Awaitable[None]]], Awaitable[None]],
    client: Client,
    headers: Any = EVENT_STREAM,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await pieces(send)

    await JoinedStreams(app, INTERVAL_S)({"type": "http"}, receive, client.send)


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_a_fast_stream_is_joined_and_whole() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for index in range(200):
            await send(piece(b"%d;" % index))
            await asyncio.sleep(0.001)
        await send(piece(b"", more=False))

    await run(produce, client)
    assert client.body == b"".join(b"%d;" % index for index in range(200))
    assert len(client.writes) < 40
    assert [more for _, _, more in client.writes].count(False) == 1
    assert not client.writes[-1][2]


async def test_the_first_pieces_go_at_once() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for index in range(NUM_AT_ONCE):
            await send(piece(b"%d" % index))
            assert len(client.writes) == index + 1
        await send(piece(b"", more=False))

    await run(produce, client)


async def test_a_slow_stream_is_not_touched() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for index in range(8):
            await send(piece(b"%d" % index))
            assert len(client.writes) == index + 1
            await asyncio.sleep(INTERVAL_S * 1.5)
        await send(piece(b"", more=False))

    await run(produce, client)


async def test_a_held_piece_waits_no_longer_than_the_interval() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for _ in range(NUM_AT_ONCE + 3):
            await send(piece(b"x"))
        await asyncio.sleep(INTERVAL_S * 1.5)
        assert client.body == b"x" * (NUM_AT_ONCE + 3)
        await send(piece(b"", more=False))

    await run(produce, client)


async def test_a_slow_client_holds_the_model_back() -> None:
    client = Client(delay_s=0.005)
    sent = 0

    async def produce(send: Any) -> None:
        nonlocal sent
        for _ in range(100):
            await send(piece(b"x" * 8192))
            sent += 8192
            assert sent - len(client.body) <= 3 * MAX_HELD_BYTES
        await send(piece(b"", more=False))

    await run(produce, client)
    assert len(client.body) == 100 * 8192


async def test_other_answers_pass_as_they_are() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for index in range(10):
            await send(piece(b"%d" % index))
        await send(piece(b"", more=False))

    await run(produce, client, headers=[(b"content-type", b"application/json")])
    assert len(client.writes) == 11


async def test_nothing_is_written_after_a_cancelled_request() -> None:
    client = Client()

    async def produce(send: Any) -> None:
        for _ in range(20):
            await send(piece(b"x"))
        await asyncio.sleep(10)

    task = asyncio.create_task(run(produce, client))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    num_writes = len(client.writes)
    await asyncio.sleep(INTERVAL_S * 2)
    assert len(client.writes) == num_writes


async def test_a_failed_write_reaches_the_model() -> None:
    async def send_for_long(send: Any) -> None:
        for _ in range(100):
            await send(piece(b"x"))
            await asyncio.sleep(0.005)

    async def produce(send: Any) -> None:
        with pytest.raises(ConnectionError):
            await send_for_long(send)

    class Broken(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if len(self.writes) > NUM_AT_ONCE:
                raise ConnectionError

    await run(produce, Broken())


@pytest.mark.long("sends many random streams")
async def test_random_streams_are_whole() -> None:
    rng = random.Random(0)
    for _ in range(20):
        client = Client(delay_s=rng.choice([0.0, 0.0, 0.001, 0.03]))
        expected = [rng.randbytes(rng.choice([1, 100, 40_000])) for _ in range(30)]
        delays = [rng.choice([0.0, 0.0, 0.001, 0.03]) for _ in expected]

        async def produce(
            send: Any, expected: list[bytes] = expected, delays: list[float] = delays
        ) -> None:
            for body, delay_s in zip(expected[:-1], delays, strict=False):
                await send(piece(body))
                if delay_s:
                    await asyncio.sleep(delay_s)
            await send(piece(expected[-1], more=False))

        await run(produce, client)
        assert client.body == b"".join(expected)
