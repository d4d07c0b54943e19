"""Drives one measurement: so many clients at once, or requests at given times."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

from truthgpt_serve.bench.client import Client
from truthgpt_serve.bench.metrics import Recorder, Series
from truthgpt_serve.bench.outcome import Outcome, Request

MAX_OUTSTANDING = 8192
"""Requests that wait for their answers at once; what would be more is not sent, and failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load.

    Attributes:
        concurrency: Requests at once; with a rate or a trace the most, None for no bound.
        rate: Requests a second; None: the next as soon as one is done, or a trace.
        num_requests: How many are sent; None for no bound.
        duration_s: After so many seconds no more are sent; None for no bound.
    """

    concurrency: int | None = None
    rate: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None


@dataclass(slots=True)
class Run:
    """What a measurement was, beside its figures.

    Attributes:
        duration_s: From its start to its last answer.
        num_interrupted: Requests that were given up because it was stopped.
        cpu_share: CPU time of this process, as a share of one core.
        lag: By how many seconds requests were sent later than they should have been.
    """

    duration_s: float
    num_interrupted: int
    cpu_share: float
    lag: Series


class Driver:
    """Sends requests and records what comes of them.

    Args:
        client: Sends them.
        recorder: Takes the outcomes.
        load: How many and when.
        stop: Set to end early: nothing more is sent, and what waits is given up.
        on_done: Called after each outcome.
    """

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        load: Load,
        stop: asyncio.Event,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._recorder = recorder
        self._load = load
        self._stop = stop
        self._on_done = on_done
        self._lag = Series()
        self._num_waiting = 0

    async def run(self, requests: Iterator[Request], times_s: Iterable[float] | None = None) -> Run:
        """Measures.

        Args:
            requests: What is sent, in this order; may be without end where the load has a bound.
            times_s: When each is sent, in seconds from the start; None for a closed loop.
        """
        start_s, cpu_s = self._client.clock(), time.process_time()
        wall_s = time.perf_counter()
        self._recorder.begin(start_s)
        sending = asyncio.create_task(
            self._closed(requests, start_s)
            if times_s is None
            else self._open(requests, times_s, start_s)
        )
        stopping = asyncio.create_task(self._stop.wait())
        num_interrupted = 0
        try:
            await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            num_interrupted = self._num_waiting
        finally:
            sending.cancel()
            stopping.cancel()
            await asyncio.gather(sending, stopping, return_exceptions=True)
        if not sending.cancelled():
            sending.result()
        duration_s = self._client.clock() - start_s
        cpu_share = (time.process_time() - cpu_s) / max(1e-9, time.perf_counter() - wall_s)
        return Run(duration_s, num_interrupted, cpu_share, self._lag)

    async def _closed(self, requests: Iterator[Request], start_s: float) -> None:
        budget = self._budget(requests, start_s)

        async def work() -> None:
            for request in budget:
                self._num_waiting += 1
                await self._send(request)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.concurrency or 1):
                group.create_task(work())

    def _budget(self, requests: Iterator[Request], start_s: float) -> Iterator[Request]:
        """Yields requests until the load's number or time is spent."""
        load = self._load
        for request in itertools.islice(requests, load.num_requests):
            if load.duration_s is not None and self._client.clock() - start_s >= load.duration_s:
                return
            yield request

    async def _open(
        self, requests: Iterator[Request], times_s: Iterable[float], start_s: float
    ) -> None:
        load = self._load
        turns = asyncio.Semaphore(load.concurrency) if load.concurrency else None
        budget = itertools.islice(requests, load.num_requests)
        async with asyncio.TaskGroup() as group:
            for at_s, request in zip(times_s, budget, strict=False):
                if load.duration_s is not None and at_s >= load.duration_s:
                    break
                wait_s = start_s + at_s - self._client.clock()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                self._lag.extend((max(0.0, self._client.clock() - start_s - at_s),))
                if self._num_waiting < MAX_OUTSTANDING:
                    self._num_waiting += 1
                    group.create_task(self._send(request, turns))
                else:
                    self._record(_not_sent(self._client.clock(), request))

    async def _send(self, request: Request, turns: asyncio.Semaphore | None = None) -> None:
        arrival_s = self._client.clock()
        async with turns or nullcontext():
            outcome = await self._client.send(request, self._client.clock() - arrival_s)
        self._num_waiting -= 1
        self._record(outcome)

    def _record(self, outcome: Outcome) -> None:
        self._recorder.add(outcome)
        self._on_done()


def _not_sent(now_s: float, request: Request) -> Outcome:
    outcome = Outcome(start_s=now_s, input_tokens=request.input_len)
    outcome.fail("not sent", f"{MAX_OUTSTANDING} requests wait for their answers")
    return outcome
