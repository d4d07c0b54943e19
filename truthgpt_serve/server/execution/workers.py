"""The threads in which a user's class runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from truthgpt_serve.cancellation import Call
from truthgpt_serve.queue_full import queue_full
from truthgpt_serve.threads import LoopThread, contained, contained_async

T = TypeVar("T")


class Workers:
    """Runs at most `limit` calls at once and lets at most `max_waiting` wait.

    A call that is cancelled while it waits never runs. One that is cancelled while it runs in a
    thread keeps its place until the thread comes back, so a class is never entered more than
    `limit` times.
    """

    def __init__(self, limit: int, max_waiting: int, name: str) -> None:
        self._name = name
        self._limit = limit
        self._max_calls = limit + max_waiting
        self._pool = ThreadPoolExecutor(limit, thread_name_prefix=f"{name}-worker")
        self._side = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-health")
        self._batches: ThreadPoolExecutor | None = None
        self._loop_thread: LoopThread | None = None
        self._places = asyncio.Semaphore(limit)
        self._lock = threading.Lock()
        self._ongoing = 0

    @property
    def ongoing(self) -> int:
        """Calls that wait or run, those whose client has left included."""
        return self._ongoing

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Runs blocking code in a worker thread.

        Raises:
            OverloadedError: The queue is full.
        """
        self._admit()
        future = self._pool.submit(contained, function)
        future.add_done_callback(self._leave)
        return future

    async def run(self, function: Callable[[], T]) -> T:
        """Does the same and returns the result; cancel it to cancel the call."""
        call = Call()
        try:
            return await asyncio.wrap_future(self.submit(lambda: call.run(function)))
        except asyncio.CancelledError:
            call.cancel()
            raise

    def submit_async(self, function: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Runs asynchronous code on the separate event loop; errors as in `submit`."""
        self._admit()
        handle: list[Future[T]] = []

        async def run() -> T:
            try:
                async with self._places:
                    if handle and handle[0].cancelled():  # while the loop was blocked
                        raise asyncio.CancelledError
                    return await contained_async(function)
            finally:
                self._leave()

        handle.append(self.loop_thread.submit(run()))
        return handle[0]

    def submit_batches(self, function: Callable[[], T]) -> Future[T]:
        """Runs the work of a batcher, which counts its requests itself.

        A single thread is shared, so that the class has no other; beside several, which streams
        may fill for minutes, batches have one of their own.
        """
        if self._limit == 1:
            return self._pool.submit(contained, function)
        with self._lock:
            if self._batches is None:
                self._batches = ThreadPoolExecutor(1, thread_name_prefix=f"{self._name}-batches")
        return self._batches.submit(contained, function)

    def submit_aside(self, function: Callable[[], T]) -> Future[T]:
        """Runs short blocking code, such as a health check, beside a model that is busy."""
        return self._side.submit(contained, function)

    @property
    def loop_thread(self) -> LoopThread:
        """The separate event loop, made when it is first needed."""
        with self._lock:
            if self._loop_thread is None:
                self._loop_thread = LoopThread(f"{self._name}-loop")
            return self._loop_thread

    def _admit(self) -> None:
        with self._lock:
            if self._ongoing >= self._max_calls:
                raise queue_full(f"model {self._name!r}", self._ongoing)
            self._ongoing += 1

    def _leave(self, _future: Future[Any] | None = None) -> None:
        with self._lock:
            self._ongoing -= 1

    def close(self, timeout_s: float) -> None:
        """Ends the threads; one stuck in a model's code is left behind after `timeout_s`."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._side.shutdown(wait=False, cancel_futures=True)
        if self._batches is not None:
            self._batches.shutdown(wait=False, cancel_futures=True)
        if self._loop_thread is not None:
            self._loop_thread.close(timeout_s)
