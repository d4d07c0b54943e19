"""The engine's counts as Prometheus' text format; knows no HTTP.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployments.hf_diffusers.stepping import Statistics

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
    """Returns the text of all counts since the engine started."""
    return "".join(f"{line}\n" for line in _lines(statistics))


def _lines(statistics: Statistics) -> Iterator[str]:
    now = {state: getattr(statistics, state) for state in STATES}
    yield from _family("jobs", "gauge", "Images that wait or are being made.", "state", now)
    ended = {outcome: getattr(statistics, outcome) for outcome in OUTCOMES}
    yield from _family("jobs_total", "counter", "Images by their end.", "outcome", ended)
    for name, text in BY_MODULE.items():
        values = getattr(statistics, name)
        yield from _family(f"{name}_total", "counter", text, "module", values)
    for name, text in EVENTS.items():
        yield f"# HELP {PREFIX}{name}_total {text}"
        yield f"# TYPE {PREFIX}{name}_total counter"
        yield f"{PREFIX}{name}_total {getattr(statistics, name)}"


def _family(
    name: str, kind: str, text: str, label: str, values: Mapping[str, float]
) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"
    for key, value in values.items():
        yield f'{PREFIX}{name}{{{label}="{key}"}} {value}'
