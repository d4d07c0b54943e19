"""The charts of a report: figures by load, distributions, and the course over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from truthgpt_serve.bench.metrics import percentile
from truthgpt_serve.bench.plots import NUM_STYLES, Chart, Line
from truthgpt_serve.bench.result import extras

TIMES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
HIGH = ("p99", "p95", "p90")
Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Results that are one line of a chart: the same server and model under several loads."""

    name: str
    results: list[Result]


def load_of(result: Result) -> tuple[str, float | None]:
    """Returns the kind of a result's load, and its number."""
    rate, clients = result.get("request_rate"), result.get("max_concurrency")
    if isinstance(rate, int | float):
        return "requests per second sent", float(rate)
    if isinstance(clients, int | float):
        return "requests at once", float(clients)
    return "load", None


def load_name(result: Result) -> str:
    """Returns a result's load in words."""
    kind, number = load_of(result)
    name = extras(result).get("load")
    if name:
        return str(name)
    return "unbounded" if number is None else f"{number:g} {kind}"


def draw_charts(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """Returns the sections of charts, each with its heading; a section may be empty."""
    return [
        ("By load", _load_charts(groups)),
        ("Distributions", _distribution_charts(groups)),
        ("Over time", _course_charts(groups)),
    ]


def _load_charts(groups: Sequence[Group]) -> list[str]:
    """Returns figures by load, of groups with at least two loads."""
    kinds = {load_of(result)[0] for group in groups for result in group.results}
    found = []
    for kind in sorted(kinds - {"load"}):
        for name, title in TIMES.items():
            words = ["median", *([high] if (high := _high(groups, name)) else [])]
            lines = [
                Line(f"{group.name}, {word}", points, style, word != "median")
                for style, group in enumerate(groups)
                for word in words
                if len(points := _points(group, kind, f"{word}_{name}_ms")) > 1
            ]
            found.append(_figure(title, kind, "milliseconds", lines))
        for key, title, unit in (
            ("output_throughput", "Output tokens per second", "tokens/s"),
            ("request_throughput", "Requests per second", "requests/s"),
            ("request_goodput", "Good requests per second", "requests/s"),
        ):
            lines = [
                Line(group.name, points, style)
                for style, group in enumerate(groups)
                if len(points := _points(group, kind, key)) > 1
            ]
            found.append(_figure(title, kind, unit, lines))
    return [chart for chart in found if chart]


def _high(groups: Sequence[Group], name: str) -> str | None:
    results = [result for group in groups for result in group.results]
    return next((word for word in HIGH if any(f"{word}_{name}_ms" in r for r in results)), None)


def _points(group: Group, kind: str, key: str) -> list[tuple[float, float]]:
    """Returns a figure by load; of several measurements under one load, the median."""
    by_load: dict[float, list[float]] = {}
    for result in group.results:
        found, at = load_of(result)
        if found == kind and at is not None and isinstance(result.get(key), int | float):
            by_load.setdefault(at, []).append(float(result[key]))
    if not any(value for values in by_load.values() for value in values):
        return []
    return [(at, percentile(sorted(values), 50)) for at, values in sorted(by_load.items())]


def _distribution_charts(groups: Sequence[Group]) -> list[str]:
    found = []
    for name, title in TIMES.items():
        lines: list[Line] = []
        for label, result in _labeled(groups):
            values = _quantiles(result, name)
            if len(values) > 1 and values[-1] > 0:
                points = [(value, float(at)) for at, value in enumerate(values)]
                lines.append(_plain_line(label, points, len(lines)))
        found.append(_figure(title, "milliseconds", "percent at most", lines, log=False))
    return [chart for chart in found if chart]


def _quantiles(result: Result, name: str) -> list[float]:
    """Returns the percentiles 0 to 99 in ms: as stored, else from the requests' own times."""
    stored = extras(result).get("quantiles_ms")
    if isinstance(stored, Mapping) and isinstance(stored.get(name), list):
        return [float(value) for value in stored[name][:100]]
    values = result.get({"ttft": "ttfts", "itl": "itls", "e2el": "latencies"}.get(name, ""))
    if not isinstance(values, list):
        return []
    if name == "itl":
        values = [itl for itls in values for itl in itls]
    ordered = sorted(float(value) * 1000 for value in values)
    return [percentile(ordered, at) for at in range(100)] if ordered else []


def _course_charts(groups: Sequence[Group]) -> list[str]:
    found = []
    for key, title, unit in (
        ("chunks_per_s", "Streamed chunks over time", "chunks/s"),
        ("requests", "Requests in flight over time", "requests"),
    ):
        lines: list[Line] = []
        for label, result in _labeled(groups):
            course = extras(result).get("course") or {}
            values, step_s = course.get(key) or [], course.get("step_s") or 1
            if len(values) > 2 and any(values):
                points = [(at * step_s, float(value)) for at, value in enumerate(values)]
                lines.append(_plain_line(label, points, len(lines)))
        found.append(_figure(title, "seconds", unit, lines, log=False))
    return [chart for chart in found if chart]


def _labeled(groups: Sequence[Group]) -> list[tuple[str, Result]]:
    """Returns the results with names for one line each, as many as can be told apart."""
    found = []
    for group in groups:
        for result in group.results:
            load = load_name(result)
            extra = extras(result)
            pair = f", pair {extra['pair'] + 1}" if extra.get("side") in (0, 1) else ""
            found.append((f"{group.name}, {load}{pair}" if len(groups) > 1 else load, result))
    return found[: 2 * NUM_STYLES]


def _plain_line(name: str, points: Sequence[tuple[float, float]], at: int) -> Line:
    return Line(name, points, at % NUM_STYLES, dashed=at >= NUM_STYLES, marked=False)


def _figure(title: str, x_name: str, y_name: str, lines: Sequence[Line], log: bool = True) -> str:
    if not lines:
        return ""
    ident = "c-" + "".join(letter if letter.isalnum() else "-" for letter in f"{title}-{x_name}")
    svg = Chart(ident.lower(), title, x_name, y_name, lines, log).to_svg()
    return f"<figcaption>{escape(title)}</figcaption>{svg}"
