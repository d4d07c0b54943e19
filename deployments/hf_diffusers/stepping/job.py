"""A submitted request as its submitter sees it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from numbers import Integral
from typing import Any, TypeAlias


class JobState(StrEnum):
    """Where a job is; the last three are final."""

    QUEUED = "queued"
    ONGOING = "ongoing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    step: int
    """Denoising steps that are done."""
    num_steps: int
    """Denoising steps in all; an estimate until the pipeline has made its timesteps."""
    queue_position: int
    """Place in the queue from 1; 0 once the job has begun."""


@dataclass(frozen=True, slots=True)
class PartialImage:
    """A preview decoded from the latents of an unfinished image."""

    index: int
    """Counts the partial images of a job from 0."""
    image: Any
    """Tensor of shape (3, height, width), float32 in [0, 1], on the CPU."""


Event: TypeAlias = Progress | PartialImage


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
    """How an image is made, beside what the stock pipeline's `__call__` is given.

    Raises:
        ValueError: A value is out of range.
    """

    scheduler: Any = None
    """Used instead of the pipeline's, as a copy."""
    adapters: Mapping[str, float] = field(default_factory=dict)
    """LoRA adapters and their weights."""
    deadline_s: float | None = None
    """Seconds from now. Requests with a deadline go first, in order of deadline; leave it out
    unless one was promised. A missed one counts no more."""
    num_steps: int | None = None
    """Denoising steps, for the order of work; by default read from the inputs."""
    partial_images: int = 0
    """How many to send, evenly over the steps; none for an unknown family."""
    on_event: Callable[[Event], None] | None = None
    """Gets `Progress` and `PartialImage`, on the engine's thread: it must not block."""

    def __post_init__(self) -> None:
        if self.partial_images < 0:
            raise ValueError(f"partial_images is {self.partial_images}: it must be at least 0")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s is {self.deadline_s}: it must be above 0 seconds")
        if self.scheduler is not None and not callable(getattr(self.scheduler, "step", None)):
            fix = "give an object, such as DDIMScheduler.from_config(pipeline.scheduler.config)"
            raise ValueError(f"scheduler is {self.scheduler!r}, which is no scheduler: {fix}")
        if self.num_steps is not None:
            check_num_steps("num_steps", self.num_steps)
        for name, weight in self.adapters.items():
            if not math.isfinite(weight):
                raise ValueError(f"adapters[{name!r}] is {weight}: the weight must be finite")


def check_num_steps(name: str, value: Any) -> int:
    """Returns a number of denoising steps.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return int(value)


class Job:
    """A submitted request. Thread-safe."""

    def __init__(self, pipeline: str, num_steps: int) -> None:
        self.pipeline = pipeline
        """The name that the pipeline was added under."""
        self.future: Future[Any] = Future()
        """Has the outcome. Cancelling it cancels the job, so `asyncio.wrap_future` just works."""
        self.progress = Progress(step=0, num_steps=num_steps, queue_position=0)
        """Replaced by a newer one as the job goes on."""
        self.state = JobState.QUEUED
        """Set by the engine's thread."""

    def __repr__(self) -> str:
        return f"<Job {self.pipeline} {self.state} step {self.progress.step}>"

    def result(self, timeout: float | None = None) -> Any:
        """Returns what the stock pipeline's `__call__` returned.

        Args:
            timeout: Seconds to wait; None waits for as long as the engine lives.

        Raises:
            TimeoutError: Not done in time.
            concurrent.futures.CancelledError: The job was cancelled.
            NotFiniteError: The decoded image, or float images in the output, have NaN or infinite
                values. PIL images in the output are not looked at themselves: what their VAE
                decoded is, unless the pipeline runs exclusively.
            DoesNotFitError: The request alone does not fit into memory.
            Exception: Whatever the pipeline raised.
        """
        return self.future.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Returns what `result` would raise, None if it would not; CancelledError is raised."""
        return self.future.exception(timeout)

    def done(self) -> bool:
        """Whether there is an outcome."""
        return self.future.done()

    def cancelled(self) -> bool:
        """Whether the outcome is that the job was cancelled."""
        return self.future.cancelled()

    def add_done_callback(self, function: Callable[[Job], None]) -> None:
        """Calls `function(job)` at the outcome, on the engine's thread: it must not block."""
        # The future keeps it: with a strong reference, the image would wait for Python's collector.
        found = weakref.ref(self)

        def call(_: Future[Any]) -> None:
            if (job := found()) is not None:
                function(job)

        self.future.add_done_callback(call)
