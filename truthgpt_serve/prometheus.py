"""Writes counts that are kept elsewhere in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

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
