"""A batcher's counts as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from truthgpt_serve.prometheus import labeled, write_page
from truthgpt_serve.server.batching.statistics import BatchStatistics

PREFIX = "truthgpt_batch_"
OUTCOMES = ("answered", "failed", "left", "refused")
COUNTERS = {
    "calls": ("num_calls", "Calls of infer_batch."),
    "split_calls": ("num_split_calls", "Calls that raised and were repeated in halves."),
    "isolated_requests": ("num_isolated", "Requests that were found at fault by splitting."),
}
HISTOGRAMS = {
    "size": ("sizes", "Requests in a batch."),
    "wait_seconds": ("waits", "Seconds that a request waited for its batch."),
    "run_seconds": ("runs", "Seconds that a batch took."),
}


def format_metrics(statistics: BatchStatistics, *, num_queued: int, num_ongoing: int) -> str:
    """Returns the page of all counts since the start.

    Args:
        statistics: A copy of the counts.
        num_queued: Requests that wait for a batch now.
        num_ongoing: Requests in the batch that runs now.
    """
    return write_page(_metrics(statistics, {"queued": num_queued, "ongoing": num_ongoing}))


def _metrics(statistics: BatchStatistics, states: dict[str, float]) -> Iterator[Metric]:
    name = f"{PREFIX}requests"
    text = "Requests that wait for a batch or are in one."
    yield labeled(GaugeMetricFamily, name, text, "state", states)
    ended = {outcome: getattr(statistics, f"num_{outcome}") for outcome in OUTCOMES}
    yield labeled(CounterMetricFamily, name, "Requests by their end.", "outcome", ended)
    for name, (attribute, text) in COUNTERS.items():
        yield CounterMetricFamily(PREFIX + name, text, getattr(statistics, attribute))
    for name, (attribute, text) in HISTOGRAMS.items():
        found = getattr(statistics, attribute)
        yield HistogramMetricFamily(PREFIX + name, text, found.buckets(), found.total)
