"""The engine's counts as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from deployments.hf_diffusers.stepping import Statistics
from truthgpt_serve.prometheus import labeled, write_page

PREFIX = "truthgpt_images_"
OUTCOMES = ("completed", "failed", "cancelled", "refused")
STATES = ("queued", "ongoing")
EVENTS = {
    "solo_fallbacks": "Batches that failed as one and ran call by call.",
    "unbatchable_calls": "Calls that had to run alone.",
    "out_of_memory_splits": "Batches that were split because they did not fit into memory.",
    "exclusive_runs": "Images that were made alone on the real pipeline.",
}
BY_MODULE = {
    "forwards": "Forwards of each module.",
    "calls": "Calls of pipelines that those forwards answered.",
    "rows": "Rows in those forwards.",
    "forward_seconds": "Seconds in those forwards.",
}


def format_metrics(statistics: Statistics) -> str:
    """Returns the page of all counts since the engine started."""
    return write_page(_metrics(statistics))


def _metrics(statistics: Statistics) -> Iterator[Metric]:
    name = f"{PREFIX}jobs"
    text = "Images that wait or are being made."
    now = {state: getattr(statistics, state) for state in STATES}
    yield labeled(GaugeMetricFamily, name, text, "state", now)
    ended = {outcome: getattr(statistics, outcome) for outcome in OUTCOMES}
    yield labeled(CounterMetricFamily, name, "Images by their end.", "outcome", ended)
    for name, text in BY_MODULE.items():
        values = getattr(statistics, name)
        yield labeled(CounterMetricFamily, PREFIX + name, text, "module", values)
    for name, text in EVENTS.items():
        yield CounterMetricFamily(PREFIX + name, text, getattr(statistics, name))
