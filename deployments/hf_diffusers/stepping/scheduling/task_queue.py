"""The jobs that wait and those that are ongoing."""

from __future__ import annotations

import threading
import time

from deployments.hf_diffusers.stepping.job import Job, JobState
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.scheduling.selection import Admission
from deployments.hf_diffusers.stepping.scheduling.task import Task

IDLE_WAIT_S = 5.0
"""How long an idle thread waits before it looks again, should a wake-up ever be lost."""


class TaskQueue:
    """Tasks from submission to end. Thread-safe; `lock` may be held around several calls."""

    def __init__(self, options: EngineOptions) -> None:
        self.lock = threading.Condition(threading.RLock())
        self.is_stopping = False
        self._options = options
        self._admission = Admission(options.max_ongoing)
        self._queued: list[Task] = []
        self._tasks: dict[Job, Task] = {}
        self._has_changed = False
        self._num_begun = 0

    @property
    def num_queued(self) -> int:
        """Jobs that have not begun."""
        return len(self._queued)

    @property
    def num_ongoing(self) -> int:
        """Jobs that have begun and not ended."""
        return len(self._tasks) - len(self._queued)

    @property
    def is_full(self) -> bool:
        """Whether no more job may be accepted."""
        return len(self._tasks) >= self._options.max_ongoing + self._options.max_queued

    def put(self, task: Task) -> None:
        """Queues a task."""
        with self.lock:
            self._tasks[task.job] = task
            self._queued.append(task)
            self._has_changed = True
            self.lock.notify_all()

    def put_back(self, task: Task) -> None:
        """Queues an ongoing task anew, to run exclusively, with all queued ones of its pipeline."""
        with self.lock:
            self._queued.append(task)
            for other in self._queued:
                other.exclusive = other.exclusive or other.entry is task.entry
            self._has_changed = True

    def cancel(self, job: Job) -> Task | None:
        """Tells an ongoing job to leave; returns a queued one's task, for the caller to end."""
        with self.lock:
            task = self._tasks.get(job)
            if task is None:
                return None
            task.cancel_requested = True
            self.lock.notify_all()
            if task not in self._queued:
                return None
            self._queued.remove(task)
            self.remove(task)
            return task

    def remove(self, task: Task) -> None:
        """Forgets an ended task."""
        with self.lock:
            self._tasks.pop(task.job, None)
            self._has_changed = True

    def wait(self) -> bool:
        """Waits while there is no task; returns False once the engine is to end."""
        with self.lock:
            while not (self.is_stopping or self._tasks):
                self.lock.wait(IDLE_WAIT_S)
            return not self.is_stopping

    def stop(self) -> None:
        """Makes `wait` return False."""
        with self.lock:
            self.is_stopping = True
            self.lock.notify_all()

    def begin(self) -> tuple[list[Task], list[Task]]:
        """Takes out the tasks to begin now.

        Returns:
            Those tasks, and the ones still queued in order, empty if no place has changed.
        """
        if not self._queued:  # read without the lock, in each step: at worst a step too late
            return [], []
        with self.lock:
            has_room = self.num_ongoing < self._options.max_ongoing
            if not self._has_changed and not has_room:
                return [], []
            now, aging = time.monotonic(), self._options.aging
            ordered = sorted(self._queued, key=lambda task: task.priority(now, aging))
            share = self._options.oldest_share
            if share and (self._num_begun + 1) % max(round(1 / share), 1) == 0:
                ordered.sort(key=lambda task: task is not self._queued[0])
            begun = self._admission.choose(ordered, self.num_ongoing)
            for task in begun:
                self._queued.remove(task)
                task.job.state = JobState.ONGOING
            self._num_begun += len(begun)
            has_moved, self._has_changed = self._has_changed or bool(begun), False
            return begun, [task for task in ordered if task not in begun] if has_moved else []

    def end_all(self) -> list[Task]:
        """Forgets all tasks, marked as cancelled, and returns them; refuses new ones."""
        with self.lock:
            self.is_stopping = True
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel_requested = True
            self._tasks.clear()
            self._queued.clear()
            return tasks
