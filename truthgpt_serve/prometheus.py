"""Writes counts that are kept elsewhere in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

REPLICA_REQUESTS = "truthgpt_replica_requests"
REPLICA_MEMORY = "truthgpt_replica_memory_bytes"
"""Metrics of every replica, which `truthgpt models` reads."""

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


def labeled(
    kind: type[Family], name: str, text: str, label: str, values: Mapping[str, float]
) -> Family:
    """Returns a metric with one sample for each value of a label.

    Args:
        kind: What it is.
        name: Its name; that of a counter without `_total`.
        text: What it counts.
        label: The name of the label.
        values: The samples by the label's values.
    """
    metric = kind(name, text, labels=[label])
    for key, value in values.items():
        metric.add_metric([key], value)
    return metric


@dataclass(slots=True)
class Histogram:
    """Counts values by their size.

    Attributes:
        bounds: Ascending upper bounds; a value belongs to the first that is not below it.
        counts: Values for each bound, and last those above all.
        total: Sum of all values.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """Returns one that does not change any more."""
        return Histogram(self.bounds, list(self.counts), self.total)

    def buckets(self) -> list[tuple[str, float]]:
        """Returns how many values are at most as high as each bound, as Prometheus writes it."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(map(float, self.counts)), strict=True))


class _Snapshot(Collector):
    """A registry of one page: the process's own (`REGISTRY`) is that of the engine inside it."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Returns the metrics."""
        return self._metrics


def write_page(metrics: Iterable[Metric]) -> str:
    """Returns a page of metrics, in version 0.0.4 of the text format."""
    return generate_latest(_Snapshot(metrics)).decode()
