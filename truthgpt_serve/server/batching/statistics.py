"""What a batcher has done, in numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from truthgpt_serve.prometheus import Histogram

SIZE_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Upper bounds of the batch sizes that are counted apart, in requests."""
SECONDS_BOUNDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Upper bounds of the waits and run times that are counted apart, in seconds."""


def _sizes() -> Histogram:
    return Histogram(SIZE_BOUNDS)


def _seconds() -> Histogram:
    return Histogram(SECONDS_BOUNDS)


@dataclass(slots=True)
class BatchStatistics:
    """Counts since the start.

    Attributes:
        num_calls: Calls of `infer_batch`; more than batches when failed ones were split.
        num_split_calls: Those with several requests that raised, and were repeated in halves.
        num_answered: Requests that got an answer.
        num_failed: Requests that got an error of their own.
        num_isolated: Those of them that were found by splitting a call.
        num_left: Requests whose caller left, or whose time was over, before their answer.
        num_refused: Requests for which there was no place.
        sizes: Batches by their number of requests, those of which nothing was left when they were
            to start not counted.
        waits: Requests by the seconds that they waited.
        runs: Batches by the seconds that they took.
    """

    num_calls: int = 0
    num_split_calls: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_isolated: int = 0
    num_left: int = 0
    num_refused: int = 0
    sizes: Histogram = field(default_factory=_sizes)
    waits: Histogram = field(default_factory=_seconds)
    runs: Histogram = field(default_factory=_seconds)

    def count_batch(self, waits_s: list[float]) -> None:
        """Counts a batch that starts; `waits_s` has the wait of each of its requests."""
        self.sizes.add(len(waits_s))
        for wait_s in waits_s:
            self.waits.add(wait_s)

    def copy(self) -> BatchStatistics:
        """Returns one that does not change any more."""
        histograms = {name: getattr(self, name).copy() for name in ("sizes", "waits", "runs")}
        return dataclasses.replace(self, **histograms)
