"""Runs a model's `stream` in its own place and passes the pieces on."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from truthgpt_serve.cancellation import Call
from truthgpt_serve.channel import Channel, ReaderGoneError
from truthgpt_serve.errors import ServerError, UnavailableError
from truthgpt_serve.server.execution.codec import Emit, RequestCodec
from truthgpt_serve.server.execution.workers import Workers

logger = logging.getLogger(__name__)


async def direct_stream(source: Any, codec: RequestCodec, emit: Emit) -> None:
    """Emits the pieces of an async generator that may run on the calling event loop."""
    make_piece = codec.encode_chunk
    try:
        async for item in source:
            piece = make_piece(item)
            if piece is not None:
                await emit(piece)
            if codec.done:
                break
    finally:
        await source.aclose()
    last = codec.encode_end()
    if last is not None:
        await emit(last)


class Pump:
    """Moves the pieces of one `stream` call from the model's thread into a channel.

    Args:
        method: The bound `stream` method: a generator, an async generator, or a function that
            returns one of them.
        codec: The request.
        channel: Where the pieces go; when its reader closes it, the generator is closed.
        label: `Class.stream`, for messages.
        wait_s: The longest wait, in seconds, for a reader that takes nothing.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        codec: RequestCodec,
        channel: Channel,
        label: str,
        wait_s: float,
    ) -> None:
        self._method = method
        self._codec = codec
        self._channel = channel
        self._label = label
        self._wait_s = wait_s

    def start(self, workers: Workers) -> Future[None]:
        """Starts in a worker thread, or on the separate event loop for asynchronous code.

        Raises:
            OverloadedError: The queue is full.
        """
        asynchronous = inspect.isasyncgenfunction(self._method) or inspect.iscoroutinefunction(
            self._method
        )
        if asynchronous:
            work = workers.submit_async(self._run_async)
        else:
            call = Call()
            self._channel.on_close(call.cancel)
            work = workers.submit(lambda: call.run(lambda: self._run(workers)))
        work.add_done_callback(self._ended)
        return work

    def _ended(self, work: Future[None]) -> None:
        if work.cancelled():
            self._channel.finish(UnavailableError("the model is shutting down"))
        else:
            self._channel.finish(work.exception())

    def _run(self, workers: Workers) -> None:
        source = self._method(self._codec.inputs())
        if hasattr(source, "__aiter__") or inspect.isawaitable(source):
            # The place in the thread is kept, so the class is not entered more often than allowed.
            inner = workers.loop_thread.submit(self._drain_async(source))
            self._channel.on_close(inner.cancel)
            if not self._channel.closed:
                inner.result(self._wait_s)
            return
        if not hasattr(source, "__next__"):
            raise self._wrong_return(source)
        try:
            self._drain(source)
        except ReaderGoneError:
            return
        finally:
            close = getattr(source, "close", None)
            if callable(close):
                close()
        self._finish()

    def _drain(self, source: Iterator[Any]) -> None:
        for item in source:
            room = self._put(item)
            if room is not None:
                room.result(self._wait_s)
            if self._codec.done:
                return

    def _put(self, item: Any) -> Future[None] | None:
        piece = self._codec.encode_chunk(item)
        if piece is not None:
            return self._channel.put(piece)
        if self._channel.closed:
            raise ReaderGoneError
        return None

    def _finish(self) -> None:
        last = self._codec.encode_end()
        if last is not None and not self._channel.closed:
            self._channel.put(last)

    async def _run_async(self) -> None:
        await self._drain_async(self._method(self._codec.inputs()))

    async def _drain_async(self, source: Any) -> None:
        if inspect.isawaitable(source):
            source = await source
        if not hasattr(source, "__aiter__"):
            raise self._wrong_return(source)
        try:
            async for item in source:
                room = self._put(item)
                if room is not None:
                    await asyncio.wait_for(asyncio.wrap_future(room), self._wait_s)
                if self._codec.done:
                    break
        except ReaderGoneError:
            return
        finally:
            close = getattr(source, "aclose", None)
            if callable(close):
                await close()
        self._finish()

    def _wrong_return(self, source: Any) -> ServerError:
        return ServerError(
            f"{self._label} returned a {type(source).__name__}; it must be a generator that yields "
            "its pieces"
        )
