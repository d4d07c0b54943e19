"""What a replica tells Serve's controller of its work, for scaling by the time that requests wait.

The wait is computed where the work is known: by the class itself (`queued_work`), by the work of
images, by batches; and for requests that nobody has read yet by their number and the mean.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from truthgpt_serve.autoscaling.decision import Sample
from truthgpt_serve.autoscaling.policy import to_stats
from truthgpt_serve.replica.load import ReplicaLoad
from truthgpt_serve.server import ModelInstance
from truthgpt_serve.threads import contained

logger = logging.getLogger(__name__)

MAX_QUEUE_S = 3600.0
"""The longest wait that is told."""


class WorkStats:
    """Reads the work of one replica; on its event loop.

    Args:
        load: Counts its requests.
        instance: Its model, started.
        clock: The time in seconds, which only goes forward.
    """

    def __init__(
        self,
        load: ReplicaLoad,
        instance: ModelInstance,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._instance = instance
        self._is_at_fault = False
        self._clock = clock
        self._read_s = clock()
        self._busy_s: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        """Returns what `record_autoscaling_stats` returns."""
        now_s = self._clock()
        passed_s, self._read_s = now_s - self._read_s, now_s
        queued = self._load.num_queued
        told = self._ask_class()
        if told is not None:
            sample = self._of_class(told, queued, passed_s)
        elif self._instance.work.mean:
            sample = self._of_work(queued, passed_s)
        elif self._instance.batcher is not None:
            sample = self._of_batches(queued, passed_s)
        else:
            sample = self._of_requests(queued, passed_s)
        return to_stats(sample)

    def _ask_class(self) -> Mapping[str, Any] | None:
        """Returns what the class says of its work; None if it says nothing, or cannot."""
        own = getattr(self._instance.model, "queued_work", None)
        if not callable(own):
            return None
        error: Exception | None = None
        try:
            told = contained(own)
        except Exception as raised:  # a user's code: Serve scales by the requests then
            error, fault = raised, f"failed: {raised!r}"
        else:
            if isinstance(told, Mapping):
                return told
            fault = f"returned {type(told).__name__}; it returns a dict"
        if not self._is_at_fault:  # this is asked every few seconds
            self._is_at_fault = True
            logger.warning("%s.queued_work %s", self._instance.label, fault, exc_info=error)
        return None

    def _of_class(self, told: Mapping[str, Any], queued: int, passed_s: float) -> Sample:
        front = self._of_requests(queued, passed_s)
        return Sample(
            0.0,
            _bounded(front.queue_s + _number(told, "queue_s")),
            front.waiting + _number(told, "waiting"),
            min(1.0, max(front.busy, _number(told, "busy"))),
            front.places,
            front.service_s,
        )

    def _of_work(self, queued: int, passed_s: float) -> Sample:
        """Of images: those whose request nobody has read are taken for average ones."""
        work = self._instance.work
        amount = work.queued + queued * work.mean
        waits_s = amount / work.speed if work.speed else 0.0
        busy = self._share("work", work.busy_s(), passed_s)
        service_s = work.mean / work.speed if work.speed else 0.0
        return Sample(0.0, _bounded(waits_s), queued + work.num_waiting, busy, service_s=service_s)

    def _of_batches(self, queued: int, passed_s: float) -> Sample:
        batcher = self._instance.batcher
        assert batcher is not None
        counts = batcher.statistics()
        num_runs, size = sum(counts.runs.counts), batcher.max_batch_size
        run_s = counts.runs.total / num_runs if num_runs else 0.0
        waiting = queued + batcher.num_waiting
        busy = self._share("batches", counts.runs.total, passed_s)
        # A batch that is not full leaves a place for the next request.
        waits_s = math.floor(waiting / size) * run_s
        return Sample(0.0, _bounded(waits_s), waiting, busy, service_s=run_s)

    def _of_requests(self, queued: int, passed_s: float) -> Sample:
        load = self._load
        waits_s = queued * load.service_s / load.num_places
        busy = self._share("requests", load.busy_s(), passed_s)
        return Sample(0.0, _bounded(waits_s), queued, busy, load.num_places, load.service_s)

    def _share(self, name: str, busy_s: float, passed_s: float) -> float:
        """Returns for which share of the time since the last look something was busy."""
        before_s, self._busy_s[name] = self._busy_s.get(name, 0.0), busy_s
        return min(1.0, max(0.0, (busy_s - before_s) / passed_s)) if passed_s > 0 else 0.0


def _bounded(value_s: float) -> float:
    return min(MAX_QUEUE_S, max(0.0, value_s))


def _number(told: Mapping[str, Any], name: str) -> float:
    """Returns a value that a class told; what is no number counts as nothing."""
    value = told.get(name, 0.0)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0
