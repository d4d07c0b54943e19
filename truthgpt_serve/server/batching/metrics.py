"""A batcher's counts as Prometheus' text format; knows no HTTP.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator

from truthgpt_serve.server.batching.statistics import BatchStatistics, Histogram

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
    """Returns the text of all counts since the start.

    Args:
        statistics: A copy of the counts.
        num_queued: Requests that wait for a batch now.
        num_ongoing: Requests in the batch that runs now.
    """
    states = {"queued": num_queued, "ongoing": num_ongoing}
    return "".join(f"{line}\n" for line in _lines(statistics, states))


def _lines(statistics: BatchStatistics, states: dict[str, int]) -> Iterator[str]:
    yield from _head("requests", "gauge", "Requests that wait for a batch or are in one.")
    for state, number in states.items():
        yield f'{PREFIX}requests{{state="{state}"}} {number}'
    yield from _head("requests_total", "counter", "Requests by their end.")
    for outcome in OUTCOMES:
        number = getattr(statistics, f"num_{outcome}")
        yield f'{PREFIX}requests_total{{outcome="{outcome}"}} {number}'
    for name, (attribute, text) in COUNTERS.items():
        yield from _head(f"{name}_total", "counter", text)
        yield f"{PREFIX}{name}_total {getattr(statistics, attribute)}"
    for name, (attribute, text) in HISTOGRAMS.items():
        yield from _head(name, "histogram", text)
        yield from _histogram(name, getattr(statistics, attribute))


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    number = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        number += count
        yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {number}'
    yield f"{PREFIX}{name}_sum {histogram.total}"
    yield f"{PREFIX}{name}_count {number}"
