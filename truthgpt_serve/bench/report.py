"""Draws results as one HTML file that loads nothing: figures as tables, and plots of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from truthgpt_serve.bench.compare import Ratio, compare
from truthgpt_serve.bench.page import page, table
from truthgpt_serve.bench.report_charts import HIGH, TIMES, Group, Result, draw_charts, load_name
from truthgpt_serve.bench.result import extras, figure_name
from truthgpt_serve.bench.target import BenchError

_COLUMNS = (
    "load",
    "completed",
    "failed",
    "request_throughput",
    "request_goodput",
    "output_throughput",
)


def make_report(title: str, files: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """Returns the report of the results of one or more files as HTML.

    Args:
        title: Its heading.
        files: Each file's name and results.

    Raises:
        BenchError: A result has figures of another form.
    """
    try:
        return build_report(title, files)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        names = ", ".join(name for name, _ in files)
        reason = f"{type(error).__name__}: {error}"
        raise BenchError(f"{names}: the figures are of another form ({reason})") from error


def build_report(title: str, files: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """Returns the report as HTML."""
    groups = _groups(files)
    parts = [_summary(groups)]
    for ratios in (compare(results) for _, results in files):
        if ratios:
            parts.append(_comparison(ratios))
    parts += [_section(name, charts) for name, charts in draw_charts(groups) if charts]
    parts += [_details(group) for group in groups]
    return page(title, "\n".join(parts))


def _groups(files: Sequence[tuple[str, Sequence[Result]]]) -> list[Group]:
    """Returns the results by file, server and model; a name says only what differs."""
    found: dict[tuple[str, ...], list[Result]] = {}
    for file, results in files:
        for result in results:
            extra = extras(result)
            side = {0: "--url", 1: "--against"}.get(extra.get("side", -1), "")
            label = result.get("label") or file
            key = (str(label), str(result.get("model_id", "")), str(extra.get("url", "")), side)
            found.setdefault(key, []).append(result)
    differing = [at for at in range(4) if len({key[at] for key in found}) > 1]
    return [
        Group(" ".join(key[at] for at in differing if key[at]) or key[1] or "results", results)
        for key, results in found.items()
    ]


# -- tables


def _summary(groups: Sequence[Group]) -> str:
    first = groups[0].results[0]
    limits = extras(first).get("slo_ms") or {}
    settings = {
        "model": first.get("model_id"),
        "endpoint": first.get("backend"),
        "address": extras(first).get("url"),
        "date": first.get("date"),
        "good requests": ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in limits.items()),
    }
    shared = " · ".join(
        f"{name}: {escape(str(value))}" for name, value in settings.items() if value
    )
    rows, header = [], ["", *_present_columns(groups), *_time_columns(groups)]
    for group in groups:
        rows += [[group.name, *_cells(result, header[1:])] for result in group.results]
    names = ["result"] + [figure_name(key) for key in header[1:]]
    if len(groups) == 1:
        names, rows = names[1:], [row[1:] for row in rows]
    return f"<p>{shared}</p>" + table("Results", names, rows)


def _present_columns(groups: Sequence[Group]) -> list[str]:
    results = [result for group in groups for result in group.results]
    return [
        key
        for key in _COLUMNS
        if key == "load" or any(result.get(key) is not None for result in results)
    ]


def _time_columns(groups: Sequence[Group]) -> list[str]:
    results = [result for group in groups for result in group.results]
    keys = [f"{word}_{name}_ms" for name in TIMES for word in ("mean", "median", *HIGH)]
    return [key for key in keys if any(result.get(key) for result in results)]


def _cells(result: Result, keys: Iterable[str]) -> list[str]:
    return [load_name(result) if key == "load" else number(result.get(key)) for key in keys]


def number(value: Any) -> str:
    """Returns a figure with as many digits as mean something."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _comparison(ratios: Sequence[Ratio]) -> str:
    rows = [
        [ratio.load, figure_name(ratio.figure), number(ratio.value), number(ratio.against),
         f"{ratio.ratio:.3f}", f"{ratio.low:.3f}", f"{ratio.high:.3f}", ratio.pairs]
        for ratio in ratios
    ]  # fmt: skip
    names = ["load", "figure", "--url", "--against", "ratio", "lowest", "highest", "pairs"]
    return (
        "<h2>Comparison</h2><p>Both addresses were measured in turns, and the order changed from "
        "pair to pair. The ratio is the median over the pairs of --url / --against.</p>"
        + table("Ratios", names, rows)
    )


def _details(group: Group) -> str:
    lines = []
    for result in group.results:
        extra, load = extras(result), load_name(result)
        for kind, entry in dict(extra.get("errors") or {}).items():
            example = next(iter(entry.get("examples") or {}), "")
            lines.append(f"{load}: {entry.get('count')} x {kind}: {example}")
        if extra.get("num_interrupted"):
            lines.append(f"{load}: stopped with {extra['num_interrupted']} requests running")
        if extra.get("token_counts") not in (None, "usage"):
            lines.append(f"{load}: output tokens are counted as chunks, for want of usage")
        if extra.get("sampled"):
            lines.append(f"{load}: percentiles of a random sample: {', '.join(extra['sampled'])}")
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>Notes: {escape(group.name)}</h2><ul>{items}</ul>"


def _section(name: str, charts: Sequence[str]) -> str:
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts)
    return f'<h2>{escape(name)}</h2><div class="charts">{figures}</div>'
