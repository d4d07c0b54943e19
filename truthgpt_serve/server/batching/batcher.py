"""Groups single requests for a class with `infer_batch`.

Ray Serve's own `serve.batch` (2.60) is not used, for these reasons. It needs a Serve replica around
it (`get_replica_context`), and a model also runs without one. It takes only an `async def`, on the
replica's event loop, which a blocking model would stop. A lone request waits the whole
`batch_wait_timeout_s`; with 0 nothing gathers while a batch runs, since a batch is closed before it
waits for its turn. An exception fails every request of the batch. Its queue has no bound, its
requests no deadline, and its only key is the multiplexed model id.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

from truthgpt_serve.config.serving import BatchingSection
from truthgpt_serve.errors import DeadlineError, RegistryError
from truthgpt_serve.server.batching.core import BatchSteps, deliver
from truthgpt_serve.server.batching.driver import BatchDriver
from truthgpt_serve.server.batching.metrics import format_metrics
from truthgpt_serve.server.batching.queue import Entry, RequestQueue, shutting_down
from truthgpt_serve.server.batching.statistics import BatchStatistics
from truthgpt_serve.server.batching.wait_policy import BatchWait
from truthgpt_serve.server.execution.codec import RequestCodec
from truthgpt_serve.server.execution.workers import Workers
from truthgpt_serve.usage.shares import current_owner

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 30.0
DEFAULT_BATCH_SIZE = 8


class Batcher:
    """Runs one batch at a time; requests that arrive meanwhile form the next one.

    With keys they come in the order of their keys' priorities and shares.

    A request that finds nothing running starts at once. A call that raises is repeated in halves
    down to single requests, so that only the guilty one fails; before each call, requests whose
    callers have left are taken out. One runner, where the class lives, does everything but wait
    for callers: the model goes from batch to batch without waiting for a busy event loop.

    Args:
        workers: Where `infer_batch` runs.
        infer_batch: The bound method, sync or async: a list of inputs to a list of outputs.
        label: `Class.infer_batch`, for messages.
        max_requests: Requests that may run and wait.
        max_batch_size: Most requests in one call.
        batch_wait_timeout_s: Longest pause between two batches, in seconds, for clients that are
            about to come back; `batching_wait` says when it is shorter, or none.
        batch_key: The bound method that returns a hashable value for inputs; only requests with
            equal values share a batch. None lets any two.

    Raises:
        RegistryError: `batch_key` is asynchronous.
    """

    def __init__(
        self,
        workers: Workers,
        infer_batch: Callable[[list[Any]], Any],
        *,
        label: str,
        max_requests: int,
        max_batch_size: int,
        batch_wait_timeout_s: float,
        batch_key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        if inspect.iscoroutinefunction(batch_key):
            raise RegistryError(
                f"{label}: the class's `batch_key` is asynchronous; make it a plain method"
            )
        self._label = label
        self._statistics = BatchStatistics()
        self._queue = RequestQueue(label, max_requests)
        self._steps = BatchSteps(
            self._queue,
            BatchWait(max_batch_size, batch_wait_timeout_s),
            self._statistics,
            label=label,
            max_batch_size=max_batch_size,
            batch_key=batch_key,
        )
        self.max_batch_size = max_batch_size
        self._runner: Future[None] | None = None
        self._driver = BatchDriver(workers, infer_batch, self._steps, label)

    @property
    def ongoing(self) -> int:
        """Requests that wait for a batch or run in one."""
        return self._queue.ongoing

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a batch."""
        return self._queue.num_waiting

    def statistics(self) -> BatchStatistics:
        """Returns a copy of what has been counted."""
        return self._statistics.copy()

    def metrics(self) -> str:
        """Returns what has been counted in Prometheus' text format."""
        num_queued = self._queue.num_waiting
        return format_metrics(
            self.statistics(),
            num_queued=num_queued,
            num_ongoing=max(0, self._queue.ongoing - num_queued),
        )

    async def run(self, codec: RequestCodec, *, limit_s: float | None = None) -> Any:
        """Answers one request as part of a batch; cancel it to take it out of the queue.

        Args:
            codec: The request's own steps.
            limit_s: The longest time for it, in seconds; None for no limit of its own.

        Raises:
            OverloadedError: The queue is full.
            DeadlineError: There was no answer after `limit_s`.
            UnavailableError: The batcher is closed.
            Exception: Whatever the class raised for this request.
        """
        loop = asyncio.get_running_loop()
        entry = Entry(codec, loop.create_future(), limit_s, current_owner())
        try:
            idle = self._queue.add(entry)
        except Exception:
            self._statistics.num_refused += 1
            raise
        if idle:
            # After all that is ready on this loop now, so that what comes together starts together.
            loop.call_soon(self._start)
        elif self._steps.pauses:
            self._driver.wake()
        timer = None if limit_s is None else loop.call_later(limit_s, _expire, entry, limit_s)
        try:
            return await entry.future
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        cancel_call = self._driver.cancel_call  # of this batch at the latest, never of the next
        is_abandoned = self._queue.abandon(entry)
        if not entry.future.done():  # the coroutine was closed, not cancelled
            entry.future.cancel()
        # Asking for the exception also tells asyncio that it does not get lost.
        if entry.future.cancelled() or (entry.future.exception() and not entry.in_time):
            self._statistics.num_left += 1
            if is_abandoned:
                cancel_call()

    def _start(self) -> None:
        try:
            self._runner = self._driver.start()
        except RuntimeError:  # the threads are closed already
            _refuse(self._queue.reset())
            return
        self._runner.add_done_callback(self._ended)

    def _ended(self, runner: Future[None]) -> None:
        """Fails all requests if the runner was cancelled before it began, or died."""
        if not runner.cancelled():
            error = runner.exception()
            if error is None:
                return
            logger.error("%s: the batches have stopped", self._label, exc_info=error)
        _refuse(self._queue.reset())

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Refuses what waits, then gives the batch that runs `timeout_s` seconds to end.

        Every caller has an answer or an error afterwards.
        """
        _refuse(self._queue.close())
        self._driver.wake()
        if self._runner is not None and not self._runner.done():
            await asyncio.wait([asyncio.wrap_future(self._runner)], timeout=timeout_s)
        _refuse(self._queue.reset())


def create_batcher(
    workers: Workers, model: Any, label: str, max_requests: int, settings: BatchingSection
) -> Batcher:
    """Returns the batcher of a model with `infer_batch`.

    Args:
        workers: Where the model runs.
        model: The instance.
        label: Its class's name, for messages.
        max_requests: Requests that may run and wait.
        settings: The configuration's `serving.batching`.
    """
    own_size: Any = getattr(model, "max_batch_size", DEFAULT_BATCH_SIZE)
    return Batcher(
        workers,
        model.infer_batch,
        label=f"{label}.infer_batch",
        max_requests=max_requests,
        max_batch_size=settings.max_batch_size or int(own_size),
        batch_wait_timeout_s=settings.batch_wait_timeout_s,
        batch_key=getattr(model, "batch_key", None),
    )


def _refuse(entries: list[Entry]) -> None:
    deliver([(entry, None, shutting_down()) for entry in entries])


def _expire(entry: Entry, limit_s: float) -> None:
    if not entry.future.done():
        entry.future.set_exception(
            DeadlineError(f"the model did not finish within {limit_s:g} s, its time limit")
        )
