"""The counts of batches."""

from __future__ import annotations

from truthgpt_serve.prometheus import Histogram
from truthgpt_serve.server.batching.statistics import SIZE_BOUNDS, BatchStatistics


def test_a_value_on_a_bound_belongs_to_it() -> None:
    histogram = Histogram(SIZE_BOUNDS)
    for size in (1, 2, 3, 8, 9, 600):
        histogram.add(size)
    assert histogram.counts == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert histogram.total == 623


def test_a_copy_does_not_change_any_more() -> None:
    counted = BatchStatistics()
    kept = counted.copy()
    counted.count_batch([0.1, 0.2])
    counted.runs.add(0.5)
    assert kept == BatchStatistics()
    assert counted.copy() == counted
