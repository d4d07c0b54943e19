"""What a batcher has done, in numbers; knows no requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class BatchStatistics:
    """Counts since the start.

    Attributes:
        num_batches: Batches, those of which nothing was left when they were to start not counted.
        num_requests: Requests in them.
        num_calls: Calls of `infer_batch`; more than batches when failed ones were split.
        num_answered: Requests that got an answer.
        num_failed: Requests that got an error of their own.
        num_left: Requests whose caller left, or whose time was over, before their answer.
        num_refused: Requests for which there was no place.
        wait_s: Seconds that the requests of batches waited, together.
        max_wait_s: The longest of these waits, in seconds.
        run_s: Seconds that the batches took, together.
    """

    num_batches: int = 0
    num_requests: int = 0
    num_calls: int = 0
    num_answered: int = 0
    num_failed: int = 0
    num_left: int = 0
    num_refused: int = 0
    wait_s: float = 0.0
    max_wait_s: float = 0.0
    run_s: float = 0.0

    @property
    def mean_batch_size(self) -> float:
        """Requests in a batch; 0 before the first."""
        return self.num_requests / max(1, self.num_batches)

    @property
    def mean_wait_s(self) -> float:
        """Seconds that a request waited for its batch; 0 before the first."""
        return self.wait_s / max(1, self.num_requests)
