"""The monitor of one worker: checks every step, and lets rank 0 record it.

What is printed, the command makes of the events that are written here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from truthgpt_serve.training.errors import TrainingError, one_line
from truthgpt_serve.training.events import EventWriter
from truthgpt_serve.training.generation.record import Sample, write_samples
from truthgpt_serve.training.guards import check_loss, check_space, free_bytes
from truthgpt_serve.training.job import TrainingJob, WorkerUse
from truthgpt_serve.training.memory.use import peak_memory
from truthgpt_serve.training.run_folder import STOP, is_owner
from truthgpt_serve.training.trackers import NoTracker, Tracker, create_tracker

MAX_EXPONENT = 700.0
"""Of a number that a float can still hold."""


class RunMonitor:
    """Implements `Monitor`; a context manager, so that logs are closed on every path.

    Args:
        job: The run.
        rank: The worker's; only 0 records.
        free: Returns the free bytes of a folder.
        owner: Token of the command that the worker belongs to; None asks for no command.
    """

    def __init__(
        self,
        job: TrainingJob,
        rank: int = 0,
        *,
        free: Callable[[Path], int] = free_bytes,
        owner: str | None = None,
    ) -> None:
        self._job = job
        self._owner = owner
        self._free = free
        self._is_first = rank == 0
        self._log_every = job.cfg["training"]["log_every"]
        self._events = EventWriter(job.folder) if self._is_first else None
        self._tracker: Tracker = NoTracker()
        self._started = time.monotonic()
        self._num_steps = 0
        self._perplexity = False
        self._last = self._started

    def begin(self, *, num_steps: int, first_step: int, units: str) -> None:
        """Starts the record; see `Monitor`."""
        self._num_steps = num_steps
        self._started = self._last = time.monotonic()
        self._perplexity = units == "tokens" and self._job.cfg["training"]["method"] == "sft"
        if self._is_first:
            self._tracker = create_tracker(self._job, first_step)
        self.record("begin", num_steps=num_steps, first_step=first_step, units=units)

    def step(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        num_units: int,
        workers: Sequence[WorkerUse] = (),
        **more: float,
    ) -> None:
        """Checks and records one step; see `Monitor`."""
        check_loss(self._job.folder, step, loss)
        now = time.monotonic()
        seconds, self._last = max(now - self._last, 1e-9), now
        uses = [
            {
                "units_per_second": round(worker.num_units / seconds, 1),
                "memory_bytes": worker.memory_bytes,
            }
            for worker in workers
        ]
        memory = max((worker.memory_bytes for worker in workers), default=0)
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            **more,
            "units_per_second": round(num_units / seconds, 1),
            "memory_bytes": memory or peak_memory(),
        }
        several = {"workers": uses} if uses else {}
        self.record("step", step=step, num_units=num_units, **values, **several)
        if step % self._log_every == 0 or step == self._num_steps:
            for rank, use in enumerate(uses):
                values |= {f"worker_{rank}/{name}": value for name, value in use.items()}
            self._tracker.log(step, {f"train/{name}": value for name, value in values.items()})

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records an evaluation; see `Monitor`."""
        found = dict(metrics)
        if self._perplexity and "loss" in found:
            found["perplexity"] = math.exp(min(found["loss"], MAX_EXPONENT))
        self.record("evaluated", step=step, **found)
        self._tracker.log(step, {f"eval/{name}": value for name, value in found.items()})
        self._last = time.monotonic()  # evaluating is no part of the next step

    def sampled(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes samples down; what cannot be written ends no run. See `Monitor`."""
        if self._is_first:
            try:
                write_samples(self._job.folder, step, samples)
                self._tracker.log_samples(step, samples)
            except Exception as error:
                self.record("note", message=f"samples of step {step:,}: {one_line(error)}")
            faults = [sample.fault for sample in samples if sample.fault]
            self.record("sampled", step=step, number=len(samples), faults=faults)
        self._last = time.monotonic()  # nor is this

    def should_stop(self) -> bool:
        """Returns whether the command was asked to end; see `Monitor`.

        Raises:
            TrainingError: Another command has taken the run over, after this one's was killed.
        """
        if self._owner is not None and not is_owner(self._job.folder, self._owner):
            raise TrainingError(f"{self._job.folder}: another command continues this run")
        return (self._job.folder / STOP).exists()

    def check_space(self, num_bytes: int) -> None:
        """Checks the disk; see `Monitor`."""
        check_space(self._job.folder, num_bytes, self._free)

    def record(self, event: str, **values: object) -> None:
        """Adds an event to the run's log, with the seconds since the loop began."""
        if self._events is not None:
            self._events.write(event, at=round(time.monotonic() - self._started, 4), **values)

    def close(self) -> None:
        """Closes the logs."""
        self._tracker.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> RunMonitor:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the logs."""
        self.close()
