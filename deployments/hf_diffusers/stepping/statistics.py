"""Counts jobs, forwards and rows of the engine."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """A snapshot. Module names are `<pipeline>.<component>` of the pipeline added first."""

    forwards: Mapping[str, int]
    """Forwards run, by module."""
    calls: Mapping[str, int]
    """Calls that pipelines made and that those forwards answered, by module."""
    rows: Mapping[str, int]
    """Rows in those forwards, without the ones that filled a bucket, by module."""
    forward_seconds: Mapping[str, float]
    """Seconds in those forwards, by module: on a GPU without the time they were waiting there."""
    submitted: int
    """Jobs accepted so far."""
    queued: int
    """Jobs that have not begun."""
    ongoing: int
    """Jobs that have begun and not ended."""
    completed: int
    """Jobs that ended with a result."""
    failed: int
    """Jobs that ended with an error."""
    cancelled: int
    """Jobs that were cancelled."""
    refused: int
    """Jobs not accepted because the queue was full."""
    solo_fallbacks: int
    """Batches that failed as one and were run call by call."""
    unbatchable_calls: int
    """Calls that had to run alone: no schema fits, or no batch is known to give what they give."""
    self_checks_failed: int
    """Unknown modules that gave other results in a batch than alone."""
    out_of_memory_splits: int
    """Batches that were split because they did not fit into memory."""
    exclusive_runs: int
    """Jobs that ran alone on their real pipeline."""


_SINGLE = (
    "submitted",
    "completed",
    "failed",
    "cancelled",
    "refused",
    "solo_fallbacks",
    "unbatchable_calls",
    "self_checks_failed",
    "out_of_memory_splits",
    "exclusive_runs",
)


class Counters:
    """The running numbers behind `Statistics`. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._single = dict.fromkeys(_SINGLE, 0)
        self._forwards: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def count(self, name: str) -> None:
        """Adds one to a field of `Statistics`."""
        with self._lock:
            self._single[name] += 1

    def count_forward(self, module: str, num_calls: int, num_rows: int) -> None:
        """Adds one forward that answered some calls."""
        with self._lock:
            self._forwards[module] += 1
            self._calls[module] += num_calls
            self._rows[module] += num_rows

    def add_seconds(self, module: str, seconds: float) -> None:
        """Adds the time of a forward, which on a GPU is known later than its result."""
        with self._lock:
            self._seconds[module] = self._seconds.get(module, 0.0) + seconds

    def snapshot(self, *, queued: int, ongoing: int) -> Statistics:
        """Returns the numbers of now."""
        with self._lock:
            return Statistics(
                forwards=dict(self._forwards),
                calls=dict(self._calls),
                rows=dict(self._rows),
                forward_seconds=dict(self._seconds),
                queued=queued,
                ongoing=ongoing,
                **self._single,
            )
