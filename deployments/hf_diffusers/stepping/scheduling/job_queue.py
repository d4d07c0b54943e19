"""The jobs that wait and those that are ongoing."""

from __future__ import annotations

import threading
import time

from deployments.hf_diffusers.stepping.job import Job, JobState
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ScheduledJob
from deployments.hf_diffusers.stepping.scheduling.selection import Admission

IDLE_WAIT_S = 5.0
"""How long an idle thread waits before it looks again, should a wake-up ever be lost."""


class JobQueue:
    """Jobs from submission to end. Thread-safe; `lock` may be held around several calls."""

    def __init__(self, options: EngineOptions) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.is_stopping = False
        self._options = options
        self._admission = Admission(options.max_ongoing)
        self._queued: list[ScheduledJob] = []
        self._jobs: dict[Job, ScheduledJob] = {}
        self._has_changed = False
        self._num_begun = 0

    @property
    def num_queued(self) -> int:
        """Jobs that have not begun."""
        return len(self._queued)

    @property
    def num_ongoing(self) -> int:
        """Jobs that have begun and not ended."""
        return len(self._jobs) - len(self._queued)

    @property
    def is_full(self) -> bool:
        """Whether no more job may be accepted."""
        return len(self._jobs) >= self._options.max_ongoing + self._options.max_queued

    def put(self, scheduled: ScheduledJob) -> None:
        """Queues a job."""
        with self.lock:
            self._jobs[scheduled.job] = scheduled
            self._queued.append(scheduled)
            self._has_changed = True
            self.lock.notify_all()

    def put_back(self, scheduled: ScheduledJob) -> None:
        """Queues an ongoing job anew, to run exclusively, with all queued ones of its pipeline."""
        with self.lock:
            self._queued.append(scheduled)
            for other in self._queued:
                other.exclusive = other.exclusive or other.entry is scheduled.entry
            self._has_changed = True

    def cancel(self, job: Job) -> ScheduledJob | None:
        """Tells an ongoing job to leave; returns a queued one, for the caller to end."""
        with self.lock:
            scheduled = self._jobs.get(job)
            if scheduled is None:
                return None
            scheduled.cancel_requested = True
            self.lock.notify_all()
            if scheduled not in self._queued:
                return None
            self._queued.remove(scheduled)
            self.remove(scheduled)
            return scheduled

    def remove(self, scheduled: ScheduledJob) -> None:
        """Forgets an ended job."""
        with self.lock:
            self._jobs.pop(scheduled.job, None)
            self._has_changed = True

    def wait(self) -> bool:
        """Waits while there is no job; returns False once the engine is to end."""
        with self.lock:
            while not (self.is_stopping or self._jobs):
                self.lock.wait(IDLE_WAIT_S)
            return not self.is_stopping

    def stop(self) -> None:
        """Makes `wait` return False."""
        with self.lock:
            self.is_stopping = True
            self.lock.notify_all()

    def begin(self) -> tuple[list[ScheduledJob], list[ScheduledJob]]:
        """Takes out the jobs to begin now.

        Returns:
            Those jobs, and the ones still queued in order, empty if no place has changed.
        """
        if not self._queued:  # read without the lock, in each step: at worst a step too late
            return [], []
        with self.lock:
            has_room = self.num_ongoing < self._options.max_ongoing
            if not self._has_changed and not has_room:
                return [], []
            now, aging = time.monotonic(), self._options.aging
            ordered = sorted(self._queued, key=lambda scheduled: scheduled.priority(now, aging))
            share = self._options.oldest_share
            if share and (self._num_begun + 1) % max(round(1 / share), 1) == 0:
                ordered.sort(key=lambda scheduled: scheduled is not self._queued[0])
            begun = self._admission.choose(ordered, self.num_ongoing)
            for scheduled in begun:
                self._queued.remove(scheduled)
                scheduled.job.state = JobState.ONGOING
            self._num_begun += len(begun)
            has_moved, self._has_changed = self._has_changed or bool(begun), False
            return begun, [
                scheduled for scheduled in ordered if scheduled not in begun
            ] if has_moved else []

    def end_all(self) -> list[ScheduledJob]:
        """Forgets all jobs, marked as cancelled, and returns them; refuses new ones."""
        with self.lock:
            self.is_stopping = True
            jobs = list(self._jobs.values())
            for scheduled in jobs:
                scheduled.cancel_requested = True
            self._jobs.clear()
            self._queued.clear()
            return jobs
