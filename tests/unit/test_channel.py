"""The way from a model's thread to an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from truthgpt_serve.channel import Channel, ReaderGoneError, wake_all


async def test_items_come_in_order_and_the_error_after_them() -> None:
    channel = Channel()

    def write() -> None:
        for item in range(5):
            channel.put(item)
        channel.finish(ValueError("broken"))
        channel.finish()

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert await channel.get() == list(range(5))
    with pytest.raises(ValueError, match="broken"):
        await channel.get()


async def test_a_full_channel_says_when_it_has_room() -> None:
    channel = Channel(max_items=2)
    assert channel.put("a") is None
    room = channel.put("b")
    assert room is not None
    assert not room.done()
    assert await channel.get() == ["a", "b"]
    assert room.done()


async def test_items_that_wait_are_merged() -> None:
    def merge(last: object, item: object) -> object:
        return item if isinstance(last, int) and isinstance(item, int) else None

    channel = Channel(merge=merge)
    for item in (1, 2, "image", 3, 4):
        channel.put(item)
    channel.finish()
    assert await channel.get() == [2, "image", 4]
    assert await channel.get() == []


async def test_one_call_wakes_many_readers() -> None:
    channels = [Channel() for _ in range(3)]
    readers = [asyncio.create_task(channel.get()) for channel in channels]
    await asyncio.sleep(0)
    for channel in channels[:2]:
        channel.put("a", wake=False)
    await asyncio.sleep(0.01)
    assert not any(reader.done() for reader in readers)
    wake_all(channels[:2])
    assert await asyncio.gather(*readers[:2]) == [["a"], ["a"]]
    channels[2].finish(wake=False)
    wake_all(channels)
    assert await readers[2] == []


def test_the_writer_learns_that_the_reader_is_gone() -> None:
    closed: list[bool] = []

    async def read() -> Channel:
        channel = Channel()
        channel.on_close(lambda: closed.append(True))
        return channel

    channel = asyncio.run(read())
    channel.close()
    assert closed == [True]
    with pytest.raises(ReaderGoneError):
        channel.put(1)


def test_a_loop_that_was_closed_is_a_reader_that_is_gone() -> None:
    async def wait() -> Channel:
        channel = Channel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.get(), 0.01)
        return channel

    channel = asyncio.run(wait())
    channel.put(1)
    with pytest.raises(ReaderGoneError):
        channel.put(2)
