"""The engine: one thread that runs many stock pipelines at once, batching them step by step."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from deployments.hf_diffusers.stepping.errors import (
    EngineClosedError,
    EngineFailedError,
    JobCancelled,
    QueueFullError,
    UnknownPipelineError,
)
from deployments.hf_diffusers.stepping.job import Job, JobOptions
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.pipelines.added import Mode, PipelineEntry, Registry
from deployments.hf_diffusers.stepping.requests import create_scheduled_job
from deployments.hf_diffusers.stepping.scheduling.cost_model import CostModel
from deployments.hf_diffusers.stepping.scheduling.job_queue import JobQueue
from deployments.hf_diffusers.stepping.scheduling.loop import Loop, conclude
from deployments.hf_diffusers.stepping.scheduling.row_caps import Probe, RowCaps, RowCapTable
from deployments.hf_diffusers.stepping.statistics import Counters, Statistics

DEFAULT_PROFILE_INPUTS: Mapping[str, Any] = {"prompt": "a photograph", "num_inference_steps": 2}
DEFAULT_OPTIONS = JobOptions()


class StepEngine:
    """Runs Diffusers pipelines with step-level continuous batching. Thread-safe.

    Each request runs the stock pipeline's `__call__`, on a shallow copy of the pipeline, in a
    greenlet of the engine's one thread. Calls of the modules wait there until the engine has put
    together a batch of them from all requests, so each image is what the stock pipeline would have
    made alone, up to the rounding of batched matrix products.

    While a pipeline is in an engine no other code may run it, change its modules or adapters. Its
    tokenizers are used on the engine's thread only; use copies elsewhere, for they are not
    thread-safe.
    """

    def __init__(self, options: EngineOptions | None = None) -> None:
        self._options = options or EngineOptions()
        self._counters = Counters()
        self._costs = CostModel()
        self._caps = RowCapTable(self._options.max_rows, self._options.row_caps_file)
        self._queue = JobQueue(self._options)
        self._lock = self._queue.lock
        self._loop = Loop(self._options, self._queue, self._counters, self._costs, self._caps)
        self._registry = Registry(self._loop.park)
        self._thread = threading.Thread(target=self._loop.run, name="step-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> StepEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_pipeline(
        self, name: str, pipeline: Any, *, mode: Mode = "auto", adapters: Sequence[str] = ()
    ) -> None:
        """Adds a pipeline that is loaded and on its device.

        Pipelines that share modules (`from_pipe`) share their batches too. Add them all before the
        first request: adding one with adapters changes the modules.

        Args:
            name: What requests call it.
            pipeline: A `diffusers.DiffusionPipeline`.
            mode: `batched`; `solo`: interleaved with others, but each call on its own; `exclusive`:
                one request at a time on the real pipeline with no other, for pipelines that
                change their modules, for offloading and for step caches; `auto`: exclusive where
                the pipeline is known to need it, or shows it in its first request, else batched.
            adapters: Names of loaded LoRA adapters that requests may ask for; a request without any
                gets the base weights.

        Raises:
            ValueError: The name is taken, or the adapters cannot be used as they are.
            EngineClosedError: The engine is closed.
        """
        with self._lock:
            self._check_open()
            self._registry.add(name, pipeline, mode, adapters)

    def mode(self, pipeline: str) -> Mode:
        """Returns how a pipeline's jobs run.

        `batched` becomes `exclusive` where a request shows that the pipeline changes its modules.
        It is `solo` while its denoiser is of an unknown kind and no batch of its calls was found
        to give what they give alone, which takes two requests at different steps.
        """
        return self._find(pipeline).actual_mode

    def submit(
        self,
        pipeline: str,
        inputs: Mapping[str, Any],
        options: JobOptions = DEFAULT_OPTIONS,
    ) -> Job:
        """Queues a request.

        Args:
            pipeline: The name it was added under.
            inputs: Keyword arguments of the stock pipeline's `__call__`. A function is called just
                before it, on the engine's thread, so that it may make a `torch.Generator`.
            options: How the image is made.

        Raises:
            QueueFullError: `max_ongoing` and `max_queued` are reached.
            UnknownPipelineError: No pipeline has the name.
            UnknownAdapterError: The pipeline was not added with the adapter.
            ValueError: A callback among the inputs.
            EngineClosedError: The engine is closed.
            EngineFailedError: The engine's thread ended by a fault.
        """
        return self._submit(pipeline, inputs, options)

    def cancel(self, job: Job) -> None:
        """Ends a job: at once if it is queued, else within one denoising step."""
        scheduled = self._queue.cancel(job)
        if scheduled is not None:
            conclude(scheduled, JobCancelled(), self._counters)

    def statistics(self) -> Statistics:
        """Returns counts of what was done so far and of what is going on."""
        with self._lock:
            queued, ongoing = self._queue.num_queued, self._queue.num_ongoing
        return self._counters.snapshot(queued=queued, ongoing=ongoing)

    @property
    def alive(self) -> bool:
        """Whether requests are served: the engine is not closed, and its thread has not failed."""
        return self._thread.is_alive() and not self._queue.is_stopping

    def profile(
        self,
        pipeline: str,
        inputs: Sequence[Mapping[str, Any]] = (DEFAULT_PROFILE_INPUTS,),
        *,
        num_repeats: int = 3,
        timeout_s: float = 600.0,
    ) -> RowCaps:
        """Measures how many rows of a shape one forward should have, and caps batches there.

        Meant for start-up: it keeps the engine busy. A shape in `row_caps_file` is not measured
        again.

        Args:
            pipeline: The name it was added under; jobs of it must be batched.
            inputs: One request for each shape to measure, as for `submit`, by default one of the
                pipeline's own size from a prompt; it is run up to its first denoiser call, which
                is then timed with 1, 2, 4, ... times its rows.
            num_repeats: Timed forwards for each number of rows.
            timeout_s: Longest wait for each of the requests.

        Returns:
            All caps known to the engine.

        Raises:
            ValueError: The pipeline is not batched.
            TimeoutError: One took longer than `timeout_s`.
            Exception: What the pipeline raised for the inputs.
        """
        if self._find(pipeline).mode != "batched":
            raise ValueError(f"pipeline {pipeline!r} is not batched: it has no row caps")
        for item in inputs:
            probe = Probe(self._options.max_rows, num_repeats)
            job = self._submit(pipeline, item, DEFAULT_OPTIONS, probe)
            try:
                job.result(timeout_s)
            except CancelledError:
                self._check_open()
            finally:
                self.cancel(job)
        return self._caps.snapshot()

    def close(self, timeout_s: float = 30.0) -> None:
        """Cancels all jobs and ends the thread; more calls do nothing.

        Raises:
            TimeoutError: The thread still runs a forward after `timeout_s` seconds.
        """
        self._queue.stop()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the engine is still in a forward after {timeout_s} s")
        with self._lock:
            self._registry.close()

    def _submit(
        self,
        pipeline: str,
        inputs: Mapping[str, Any],
        options: JobOptions,
        probe: Probe | None = None,
    ) -> Job:
        with self._lock:
            self._check_open()
            scheduled = create_scheduled_job(self._find(pipeline), inputs, self._costs, options)
            scheduled.probe = probe
            if self._queue.is_full:
                self._counters.count("refused")
                raise QueueFullError(self._options.max_ongoing + self._options.max_queued)
            self._counters.count("submitted")
            self._queue.put(scheduled)
        job = scheduled.job
        job.add_done_callback(lambda job: self.cancel(job) if job.cancelled() else None)
        return job

    def _find(self, pipeline: str) -> PipelineEntry:
        entry = self._registry.pipelines.get(pipeline)
        if entry is None:
            raise UnknownPipelineError(
                f"no pipeline {pipeline!r}: there are {sorted(self._registry.pipelines)}"
            )
        return entry

    def _check_open(self) -> None:
        if self._loop.failure is not None:
            raise EngineFailedError(f"the engine failed: {self._loop.failure!r}")
        if self._queue.is_stopping:
            raise EngineClosedError("the engine is closed")
