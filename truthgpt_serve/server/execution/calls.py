"""Calls the methods of a model's class, each in its place."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from truthgpt_serve.channel import Channel
from truthgpt_serve.errors import ServerError
from truthgpt_serve.server.execution.codec import Emit, RequestCodec
from truthgpt_serve.server.execution.streaming import Pump, direct_stream
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.threads import contained_async

T = TypeVar("T")

MAX_PREPARING = 2
"""Requests whose inputs are made in threads at the same time; how many there are is bounded."""


class ModelCalls:
    """Runs blocking methods in worker threads, and asynchronous ones on an event loop.

    Args:
        model: The instance of the class.
        workers: The threads, and the loop of their own.
        label: The class's name, for messages.
        on_event_loop: Whether asynchronous methods never block: then they run on the caller's loop.
        max_wait_s: The longest wait, in seconds, for a client that takes nothing of a stream.

    Attributes:
        workers: The threads.
    """

    def __init__(
        self, model: Any, workers: Workers, label: str, *, on_event_loop: bool, max_wait_s: float
    ) -> None:
        self.workers = workers
        self._model = model
        self._label = label
        self._on_event_loop = on_event_loop
        self._max_wait_s = max_wait_s
        self._direct_ongoing = 0
        self._preparing = ThreadPoolExecutor(MAX_PREPARING, thread_name_prefix="inputs")

    @property
    def ongoing(self) -> int:
        """Calls that wait or run, those whose client has left included."""
        return self._direct_ongoing + self.workers.ongoing

    async def call(self, method: str, *args: Any) -> Any:
        """Calls a method, sync or async, in its place and returns the result."""
        function = getattr(self._model, method)
        if not inspect.iscoroutinefunction(function):
            result = await asyncio.wrap_future(self.workers.submit(lambda: function(*args)))
            if not inspect.isawaitable(result):
                return result
            return await self._run_async(lambda: _await(result))
        return await self._run_async(lambda: function(*args))

    async def _run_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._on_event_loop:
            self._direct_ongoing += 1
            try:
                return await contained_async(function)
            finally:
                self._direct_ongoing -= 1
        return await asyncio.wrap_future(self.workers.submit_async(function))

    async def infer(self, codec: RequestCodec) -> Any:
        """Calls `infer` with the codec's inputs; returns the answer as the codec encodes it."""
        infer = self._model.infer
        if inspect.iscoroutinefunction(infer):

            async def call() -> Any:
                outputs = await infer(await self._inputs(codec))
                return codec.encode(outputs)

            return await self._run_async(call)
        result = await self.workers.run(lambda: self._infer(infer, codec))
        if inspect.isawaitable(result):
            return await self._run_async(lambda: _encode(result, codec))
        return result

    async def _inputs(self, codec: RequestCodec) -> Any:
        """Returns a codec's inputs, made in a thread where that would hold up the event loop."""
        if not (self._on_event_loop and codec.takes_long):
            return codec.inputs()
        return await asyncio.get_running_loop().run_in_executor(self._preparing, codec.inputs)

    def close(self, timeout_s: float) -> None:
        """Ends the threads; one stuck in a model's code is left behind after `timeout_s`."""
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self.workers.close(timeout_s)

    def _infer(self, infer: Callable[[Any], Any], codec: RequestCodec) -> Any:
        outputs = infer(codec.inputs())
        if inspect.isawaitable(outputs):
            return outputs
        if inspect.isgenerator(outputs) or inspect.isasyncgen(outputs):
            raise ServerError(
                f"{self._label}.infer returned a {type(outputs).__name__}; "
                "name the method that yields `stream`, and return the whole output from `infer`"
            )
        return codec.encode(outputs)

    async def stream(self, codec: RequestCodec, emit: Emit) -> None:
        """Calls `stream`; awaits `emit` with each of the codec's pieces and with its end."""
        method = self._model.stream
        if self._on_event_loop and inspect.isasyncgenfunction(method):
            self._direct_ongoing += 1
            try:
                await direct_stream(method(await self._inputs(codec)), codec, emit)
            finally:
                self._direct_ongoing -= 1
            return
        channel = Channel()
        pump = Pump(method, codec, channel, f"{self._label}.stream", self._max_wait_s)
        work = pump.start(self.workers)
        try:
            while items := await channel.get():
                for item in items:
                    await emit(item)
        finally:
            channel.close()
            work.cancel()

    def aside(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Starts a short method, sync or async, beside a model that is busy."""
        if not inspect.iscoroutinefunction(function):
            return asyncio.wrap_future(self.workers.submit_aside(function))
        if self._on_event_loop:
            work: asyncio.Future[Any] = asyncio.ensure_future(function())
            return work
        return asyncio.wrap_future(self.workers.loop_thread.submit(function()))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _encode(awaitable: Awaitable[Any], codec: RequestCodec) -> Any:
    return codec.encode(await awaitable)
