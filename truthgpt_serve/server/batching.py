"""Groups single requests for a class with `infer_batch`; knows nothing of HTTP or of engines."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from truthgpt_serve.errors import OverloadedError, ServerError, UnavailableError
from truthgpt_serve.server.exchange import Exchange
from truthgpt_serve.server.workers import Workers

Entry = tuple[Exchange, "asyncio.Future[Any]"]
Outcome = tuple[Any, Exception | None]


class Batcher:
    """Runs one batch at a time; requests that arrive meanwhile form the next one.

    A batch that fails is run again request by request, so that one bad request fails alone.

    Args:
        workers: Where `infer_batch` runs.
        infer_batch: The bound method, sync or async: a list of inputs to a list of outputs.
        label: `Class.infer_batch`, for messages.
        max_requests: Requests that may run and wait.
        max_batch_size: Most requests in one call.
        batch_wait_timeout_s: How long the first request of a batch waits for others, in seconds.
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
    ) -> None:
        self._workers = workers
        self._infer_batch = infer_batch
        self._label = label
        self._max_requests = max_requests
        self._max_batch_size = max_batch_size
        self._wait_s = batch_wait_timeout_s
        self._waiting: deque[Entry] = deque()
        self._running = 0
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ongoing(self) -> int:
        """Requests that wait for a batch or run in one."""
        return len(self._waiting) + self._running

    async def run(self, exchange: Exchange) -> Any:
        """Answers one request as part of a batch.

        Raises:
            OverloadedError: As many requests wait as may.
            Exception: Whatever the class raised for this request.
        """
        if self.ongoing >= self._max_requests:
            raise OverloadedError(
                f"{self._label}: {self.ongoing} requests run or wait; try again later",
                retry_after_s=1,
            )
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        entry = (exchange, future)
        self._waiting.append(entry)
        if len(self._waiting) >= self._max_batch_size:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def _work(self) -> None:
        while self._waiting:
            if len(self._waiting) < self._max_batch_size and self._wait_s > 0:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._wait_s)
            size = min(self._max_batch_size, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(size)]
            self._running = len(batch)
            try:
                outcomes = await self._run_batch([exchange for exchange, _ in batch])
            except asyncio.CancelledError:
                outcomes = [(None, UnavailableError("the model is shutting down"))] * len(batch)
            except Exception as error:
                outcomes = [(None, error)] * len(batch)
            self._running = 0
            for (_, future), (answer, failure) in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if failure is None:
                    future.set_result(answer)
                else:
                    future.set_exception(failure)

    async def _run_batch(self, exchanges: list[Exchange]) -> list[Outcome]:
        if not exchanges:
            return []
        if inspect.iscoroutinefunction(self._infer_batch):
            work = self._workers.submit_async(lambda: self._call_async(exchanges))
        else:
            work = self._workers.submit(lambda: self._call(exchanges))
        return await asyncio.wrap_future(work)

    def _call(self, exchanges: list[Exchange]) -> list[Outcome]:
        inputs, places, outcomes = _prepare(exchanges)
        try:
            outputs = self._check(self._infer_batch(inputs), len(inputs)) if inputs else []
        except Exception as error:
            if len(inputs) <= 1:
                return _failed(outcomes, places, error)
            for place in places:
                outcomes[place] = self._call([exchanges[place]])[0]
            return outcomes
        return _answered(exchanges, outcomes, places, outputs)

    async def _call_async(self, exchanges: list[Exchange]) -> list[Outcome]:
        inputs, places, outcomes = _prepare(exchanges)
        try:
            outputs = self._check(await self._infer_batch(inputs), len(inputs)) if inputs else []
        except Exception as error:
            if len(inputs) <= 1:
                return _failed(outcomes, places, error)
            for place in places:
                outcomes[place] = (await self._call_async([exchanges[place]]))[0]
            return outcomes
        return _answered(exchanges, outcomes, places, outputs)

    def _check(self, outputs: Any, size: int) -> list[Any]:
        if not isinstance(outputs, list | tuple):
            raise ServerError(
                f"{self._label} returned {type(outputs).__name__}; it returns a list with one "
                "output for each of its inputs"
            )
        if len(outputs) != size:
            raise ServerError(
                f"{self._label} returned {len(outputs)} outputs for {size} inputs; "
                "it returns one for each"
            )
        return list(outputs)


def _prepare(exchanges: list[Exchange]) -> tuple[list[Any], list[int], list[Outcome]]:
    """Returns the usable inputs, their places in the batch, and the outcomes of the others."""
    inputs: list[Any] = []
    places: list[int] = []
    outcomes: list[Outcome] = [(None, None)] * len(exchanges)
    for place, exchange in enumerate(exchanges):
        try:
            inputs.append(exchange.prepare())
            places.append(place)
        except Exception as error:
            outcomes[place] = (None, error)
    return inputs, places, outcomes


def _failed(outcomes: list[Outcome], places: list[int], error: Exception) -> list[Outcome]:
    for place in places:
        outcomes[place] = (None, error)
    return outcomes


def _answered(
    exchanges: list[Exchange], outcomes: list[Outcome], places: list[int], outputs: list[Any]
) -> list[Outcome]:
    for place, output in zip(places, outputs, strict=True):
        try:
            outcomes[place] = (exchanges[place].answer(output), None)
        except Exception as error:
            outcomes[place] = (None, error)
    return outcomes
