"""The ways of making images that `images.py` compares: in turn, behind a queue, step by step."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from benchmarks.image_pipelines import BenchmarkPipeline
from deployments.hf_diffusers.stepping import EngineOptions, JobOptions, StepEngine

TIMEOUT_S = 1800.0
SMALL_SHARE = 0.8
"""So many of the mixed requests ask for a small image."""


@dataclass(frozen=True, slots=True)
class Request:
    """One image.

    Attributes:
        size: Width and height in pixels.
        num_steps: Denoising steps.
        seed: Of the noise.
        arrival_s: Seconds after the beginning.
    """

    size: int
    num_steps: int
    seed: int
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a trace gave.

    Attributes:
        requests: The trace.
        latencies_s: Of each request, from its arrival to its image.
        duration_s: From the first arrival to the last image.
        num_forwards: Forwards of the denoiser.
    """

    requests: Sequence[Request]
    latencies_s: Sequence[float]
    duration_s: float
    num_forwards: int

    @property
    def images_per_s(self) -> float:
        """Throughput."""
        return len(self.requests) / self.duration_s

    def quantile_s(self, share: float, *, size: int | None = None) -> float:
        """Returns a quantile of the latencies, of one size's or of all."""
        values = sorted(
            latency
            for request, latency in zip(self.requests, self.latencies_s, strict=True)
            if size is None or request.size == size
        )
        return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def same_trace(size: int, num_steps: int, number: int) -> list[Request]:
    """Returns equal requests that are all there at the beginning."""
    return [Request(size, num_steps, seed, 0.0) for seed in range(number)]


def mixed_trace(small: int, large: int, number: int, *, rate_per_s: float) -> list[Request]:
    """Returns small and large images of 4 to 20 steps whose arrivals are a Poisson process."""
    draw = random.Random(11)
    trace, arrival_s = [], 0.0
    for seed in range(number):
        size = small if draw.random() < SMALL_SHARE else large
        trace.append(Request(size, draw.randint(4, 20), seed, arrival_s))
        arrival_s += draw.expovariate(rate_per_s)
    return trace


class SerialSide:
    """The stock pipeline, one image after the other without a pause."""

    def __init__(self, pipeline: BenchmarkPipeline) -> None:
        self._pipeline = pipeline

    def run(self, trace: Sequence[Request]) -> Result:
        """Makes all images of the trace."""
        before = self._pipeline.num_forwards
        started_s = time.perf_counter()
        latencies_s = []
        for request in trace:
            began_s = time.perf_counter()
            self.make(request)
            latencies_s.append(time.perf_counter() - began_s)
        duration_s = time.perf_counter() - started_s
        return Result(trace, latencies_s, duration_s, self._pipeline.num_forwards - before)

    def make(self, request: Request) -> None:
        """Makes one image and waits for the device."""
        inputs = self._pipeline.inputs(request.size, request.num_steps, request.seed)
        with torch.no_grad():
            self._pipeline.pipe(**inputs)
        if self._pipeline.device == "cuda":
            torch.cuda.synchronize()


class QueueSide:
    """The stock pipeline behind a first-come-first-served queue."""

    def __init__(self, pipeline: BenchmarkPipeline) -> None:
        self._serial = SerialSide(pipeline)
        self._pipeline = pipeline
        self._waiting: queue.Queue[tuple[Request, Future[None]] | None] = queue.Queue(100_000)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join(TIMEOUT_S)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            request, future = item
            try:
                self._serial.make(request)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def submit(self, request: Request) -> Future[Any]:
        """Queues one request."""
        future: Future[Any] = Future()
        self._waiting.put((request, future))
        return future

    def run(self, trace: Sequence[Request]) -> Result:
        """Sends each request at its time."""
        before = self._pipeline.num_forwards
        return _replay(self, trace, lambda: self._pipeline.num_forwards - before)


class EngineSide:
    """The step-batching engine.

    Args:
        pipeline: What it serves.
        num_clients: At most so many requests at the same time.
    """

    def __init__(self, pipeline: BenchmarkPipeline, num_clients: int = 1) -> None:
        self._pipeline = pipeline
        self._num_clients = num_clients
        options = EngineOptions(max_ongoing=num_clients, max_queued=100_000)
        self._engine = StepEngine(options)
        self._engine.add_pipeline("sdxl", pipeline.pipe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def profile(self, sizes: Sequence[int]) -> None:
        """Has the engine find how many rows of each size are worth one forward."""
        self._engine.profile("sdxl", [self._pipeline.inputs(size, 2, 0) for size in sizes])

    def submit(self, request: Request) -> Future[Any]:
        """Hands one request to the engine."""
        inputs = self._pipeline.inputs(request.size, request.num_steps, request.seed)
        return self._engine.submit("sdxl", inputs, JobOptions(num_steps=request.num_steps)).future

    def run(self, trace: Sequence[Request]) -> Result:
        """Sends each request at its time; those without one, by `num_clients` clients."""
        before = self._pipeline.num_forwards
        if any(request.arrival_s for request in trace):
            return _replay(self, trace, lambda: self._pipeline.num_forwards - before)
        started_s = time.perf_counter()
        with ThreadPoolExecutor(self._num_clients) as clients:
            latencies_s = list(clients.map(self._make, trace))
        duration_s = time.perf_counter() - started_s
        return Result(trace, latencies_s, duration_s, self._pipeline.num_forwards - before)

    def _make(self, request: Request) -> float:
        began_s = time.perf_counter()
        self.submit(request).result(TIMEOUT_S)
        return time.perf_counter() - began_s


def _note_end(ended_s: dict[int, float], index: int, _future: Future[Any]) -> None:
    ended_s[index] = time.perf_counter()


def _replay(side: QueueSide | EngineSide, trace: Sequence[Request], count: Any) -> Result:
    started_s = time.perf_counter()
    ended_s: dict[int, float] = {}
    futures = []
    for index, request in enumerate(trace):
        time.sleep(max(0.0, started_s + request.arrival_s - time.perf_counter()))
        future = side.submit(request)
        future.add_done_callback(partial(_note_end, ended_s, index))
        futures.append(future)
    for future in futures:
        future.result(TIMEOUT_S)
    latencies_s = [
        ended_s[index] - started_s - request.arrival_s for index, request in enumerate(trace)
    ]
    return Result(trace, latencies_s, max(ended_s.values()) - started_s, count())
