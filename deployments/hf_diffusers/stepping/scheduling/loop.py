"""What the engine's one thread does: begin jobs, resume them, choose calls, run them, end jobs.

`selection` chooses the calls, `executor` runs them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import InvalidStateError
from typing import Any

import greenlet
import torch

from deployments.hf_diffusers.stepping.calls.call import create_call
from deployments.hf_diffusers.stepping.errors import (
    EngineFailedError,
    JobCancelled,
    NeedsExclusive,
    forget_frames,
)
from deployments.hf_diffusers.stepping.job import JobState, Progress
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.pipelines.added import ModuleEntry
from deployments.hf_diffusers.stepping.pipelines.proxies import JobGreenlet, Park
from deployments.hf_diffusers.stepping.pipelines.run_pipeline import run_batched, run_exclusively
from deployments.hf_diffusers.stepping.pipelines.step_progress import follow_num_steps, send
from deployments.hf_diffusers.stepping.scheduling.cost_model import CostModel
from deployments.hf_diffusers.stepping.scheduling.executor import Executor
from deployments.hf_diffusers.stepping.scheduling.job_queue import JobQueue
from deployments.hf_diffusers.stepping.scheduling.row_caps import RowCapTable
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import (
    ModuleCall,
    Outcome,
    ScheduledJob,
)
from deployments.hf_diffusers.stepping.scheduling.selection import CallChooser
from deployments.hf_diffusers.stepping.statistics import Counters

logger = logging.getLogger(__name__)

MAX_THROWS = 100
"""Times a pipeline may catch its cancellation and call a module again before it is let go."""


class Loop:
    """The engine's thread: `run` is its main function, and all else here is called on it."""

    def __init__(
        self,
        options: EngineOptions,
        queue: JobQueue,
        counters: Counters,
        costs: CostModel,
        caps: RowCapTable,
    ) -> None:
        self.failure: BaseException | None = None
        """What ended the thread, if a fault did."""
        self._options = options
        self._queue = queue
        self._counters = counters
        self._costs = costs
        self._caps = caps
        self._executor = Executor(options, caps, counters)
        self._chooser = CallChooser(
            aging=options.aging,
            oldest_share=options.oldest_share,
            max_held=options.max_held,
            max_rows=self._max_rows,
        )
        self._parked: list[ModuleCall] = []
        self._ready: deque[tuple[ScheduledJob, Outcome]] = deque()

    def park(self, entry: ModuleEntry) -> Park:
        """Returns what a module's proxy calls inside a job: it waits there for the outcome."""

        def wait(
            scheduled: ScheduledJob, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            if scheduled.cancel_requested:
                raise JobCancelled
            follow_num_steps(scheduled, scheduled.clone)
            call, reason = create_call(scheduled, entry, method, args, kwargs)
            if reason:
                self._counters.count("unbatchable_calls")
                logger.debug("%s runs alone: %s", entry.name, reason)
            outcome: Outcome = greenlet.getcurrent().parent.switch(call)
            if outcome.error is not None:
                raise outcome.error
            return outcome.value

        return wait

    def run(self) -> None:
        """The thread's main function."""
        try:
            with torch.no_grad():
                while self._queue.wait():
                    self._turn()
        except BaseException as error:
            logger.exception("the engine failed; its jobs fail with it")
            forget_frames(error)
            self.failure = error
        finally:
            self._end_all()

    def _turn(self) -> None:
        self._begin_queued()
        while self._ready:
            self._resume(*self._ready.popleft())
        self._release_cancelled()
        if self._ready or not self._parked:
            return
        calls = self._chooser.choose(self._parked, time.monotonic())
        chosen = set(map(id, calls))
        self._parked = [call for call in self._parked if id(call) not in chosen]
        for call, outcome in zip(calls, self._executor.run(calls), strict=True):
            self._ready.append((call.scheduled, outcome))

    def _max_rows(self, call: ModuleCall) -> int:
        is_decoder, options = call.module.is_decoder, self._options
        cap = options.max_decode_rows if is_decoder else options.max_rows
        return min(cap, self._caps.max_rows(self._caps.key(call.module, call.shape)))

    def _begin_queued(self) -> None:
        begun, left = self._queue.begin()
        for scheduled in begun:
            self._begin(scheduled)
        for position, scheduled in enumerate(left, start=1):
            _tell(scheduled, Progress(scheduled.step, scheduled.num_steps, position))

    def _begin(self, scheduled: ScheduledJob) -> None:
        _tell(scheduled, Progress(0, scheduled.num_steps, 0))
        if scheduled.exclusive:
            self._counters.count("exclusive_runs")
            scheduled.error = self._guarded(
                scheduled, lambda: run_exclusively(scheduled, self._on_step)
            )
            self._end(scheduled)
            return
        scheduled.greenlet = JobGreenlet(lambda _: self._run_job(scheduled))
        scheduled.greenlet.scheduled = scheduled
        self._ready.append((scheduled, Outcome()))

    def _run_job(self, scheduled: ScheduledJob) -> None:
        """The whole life of a job's greenlet."""
        timesteps = self._options.cpu_timesteps
        scheduled.error = self._guarded(
            scheduled, lambda: run_batched(scheduled, self._on_step, cpu_timesteps=timesteps)
        )

    def _guarded(self, scheduled: ScheduledJob, run: Any) -> BaseException | None:
        """Returns what the pipeline raised."""
        try:
            run()
        except (Exception, JobCancelled, NeedsExclusive) as error:
            return error
        return None

    def _on_step(self, scheduled: ScheduledJob) -> None:
        if scheduled.measured_seconds > 0:
            self._costs.observe(
                scheduled.cost_key, scheduled.measured_seconds / scheduled.num_images
            )
            scheduled.step_cost = self._costs.estimate(scheduled.cost_key) * scheduled.num_images
            scheduled.measured_seconds = 0.0

    def _resume(self, scheduled: ScheduledJob, outcome: Outcome) -> None:
        job_greenlet = scheduled.greenlet
        if job_greenlet is None:
            return
        call = job_greenlet.switch(outcome)
        if job_greenlet.dead:
            self._end(scheduled)
        else:
            self._parked.append(call)

    def _release_cancelled(self) -> None:
        for call in [call for call in self._parked if call.scheduled.cancel_requested]:
            self._parked.remove(call)
            self._ready.append((call.scheduled, Outcome(error=JobCancelled())))

    def _end(self, scheduled: ScheduledJob) -> None:
        error = scheduled.error
        if isinstance(error, NeedsExclusive):
            self._retry_exclusively(scheduled, error)
            return
        self._queue.remove(scheduled)
        conclude(scheduled, error, self._counters)

    def _retry_exclusively(self, scheduled: ScheduledJob, error: NeedsExclusive) -> None:
        forget_frames(error)
        logger.info("pipeline %s runs exclusively from now on: %s", scheduled.entry.name, error)
        scheduled.entry.mode = "exclusive"
        scheduled.greenlet = scheduled.clone = scheduled.error = None
        scheduled.step = 0
        scheduled.job.state = JobState.QUEUED
        self._queue.put_back(scheduled)

    def _end_all(self) -> None:
        """Ends every job: cancelled, or failed if the engine failed."""
        for scheduled in self._queue.end_all():
            self._unwind(scheduled)
            conclude(scheduled, self._last_error(), self._counters)
        self._parked.clear()
        self._ready.clear()
        if self.failure is None:
            self._executor.close()

    def _last_error(self) -> BaseException:
        if self.failure is None:
            return JobCancelled()
        return EngineFailedError(f"the engine failed: {self.failure!r}")

    def _unwind(self, scheduled: ScheduledJob) -> None:
        """Raises the cancellation inside a parked pipeline until it has left its greenlet."""
        for _ in range(MAX_THROWS):
            if not scheduled.greenlet:  # never begun, or ended
                return
            scheduled.greenlet.switch(Outcome(error=JobCancelled()))
        logger.error("pipeline %s would not leave when cancelled", scheduled.entry.name)


def _tell(scheduled: ScheduledJob, progress: Progress) -> None:
    if scheduled.job.progress != progress:
        scheduled.job.progress = progress
        send(scheduled, progress)


def conclude(scheduled: ScheduledJob, error: BaseException | None, counters: Counters) -> None:
    """Sets the outcome of a job and lets go of everything that it held; on any thread."""
    job, output = scheduled.job, scheduled.output
    scheduled.greenlet = scheduled.clone = scheduled.output = scheduled.error = (
        scheduled.on_event
    ) = None
    scheduled.inputs = {}
    if error is not None:
        forget_frames(error)
    try:
        if isinstance(error, JobCancelled):
            job.state = JobState.CANCELLED
            counters.count("cancelled")
            job.future.cancel()
        elif error is not None:
            job.state = JobState.FAILED
            counters.count("failed")
            job.future.set_exception(error)
        else:
            job.state = JobState.COMPLETED
            counters.count("completed")
            job.future.set_result(output)
    except InvalidStateError:
        # Somebody cancelled the future at the same moment: the job had ended all the same.
        logger.debug("the outcome of %s came too late", job)
