"""Shows a measurement on a terminal: what is going on, and the results as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from truthgpt_serve.bench.compare import Ratio
from truthgpt_serve.bench.load import Load
from truthgpt_serve.bench.result import OWN, TIMES, figure_name
from truthgpt_serve.bench.session import Plan, load_name
from truthgpt_serve.bench.target import Target
from truthgpt_serve.terminal import clean

BUSY_SHARE = 0.8
"""Above this share of a core the client itself may be what is measured."""
MAX_LAG_MS = 20.0
_PIPE_WIDTH = 120
_RATES = (
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "completed",
    "failed",
)

Progressing = tuple[Callable[[int, Load, int], None], Callable[[], None]]


class Console:
    """Writes progress to standard error and tables to standard output.

    Args:
        quiet: Whether to show no progress.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._out = RichConsole(highlight=False)
        if not self._out.is_terminal:
            self._out.width = _PIPE_WIDTH
        self._err = RichConsole(stderr=True, highlight=False)
        self._quiet = quiet

    @contextmanager
    def progress(self, plan: Plan, targets: Sequence[Target]) -> Iterator[Progressing]:
        """Yields what a session calls before each measurement and after each request."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._err,
            transient=True,
            disable=self._quiet or not self._err.is_terminal,
        )
        with bar:
            task = bar.add_task("waiting for a first answer", total=None)

            def begin(side: int, load: Load, pair: int) -> None:
                words = load_name(load, trace=bool(plan.trace))
                if len(targets) > 1:
                    words += f", pair {pair + 1}, {targets[side].url}"
                total = load.num_requests or len(plan.trace) or None
                bar.reset(task, description=escape(words), total=total)

            yield begin, lambda: bar.advance(task)

    def show(self, results: Sequence[Mapping[str, Any]], ratios: Sequence[Ratio]) -> None:
        """Prints the results: of a comparison the ratios."""
        if not results:
            self._err.print("nothing was measured")
            return
        first = results[0]
        place = f"{first['model_id']} at {first[OWN]['url']}, {first['backend']}"
        self._out.print(escape(clean(place)), soft_wrap=True)
        if ratios:
            self._out.print(ratio_table(ratios))
        else:
            self._out.print(single_table(first) if len(results) == 1 else sweep_table(results))
        for line in notes(results):
            self._out.print(escape(clean(line)), soft_wrap=True)


def _table(title: str, names: Sequence[str], num_left: int = 1) -> Table:
    table = Table(
        box=rich.box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False
    )
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if at < num_left else "right", no_wrap=True)
    return table


def single_table(result: Mapping[str, Any]) -> Table:
    """Returns one measurement as a table: times by statistic, then rates."""
    words = _words(result)
    title = f"{escape(str(result[OWN]['load']))}, {result['duration']:.1f} s"
    table = _table(title, ["ms", *words])
    for name in TIMES:
        if any(result.get(f"{word}_{name}_ms") for word in words):
            values = (_number(result.get(f"{word}_{name}_ms")) for word in words)
            table.add_row(figure_name(name), *values)
    table.add_section()
    for key in _RATES:
        if result.get(key) is not None:
            table.add_row(figure_name(key), _number(result[key]))
    return table


def _words(result: Mapping[str, Any]) -> list[str]:
    """Returns the statistics that a result has: mean, median and its percentiles."""
    ending = "_e2el_ms"
    found = [key.removesuffix(ending) for key in result if key.endswith(ending)]
    return [word for word in found if word != "std"]


def sweep_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Returns several measurements as a table, one a column."""
    table = _table("", ["", *(escape(str(result[OWN]["load"])) for result in results)])
    for key in _RATES:
        if any(result.get(key) is not None for result in results):
            table.add_row(figure_name(key), *(_number(result.get(key)) for result in results))
    words = [word for word in _words(results[0]) if word != "mean"]
    for name in TIMES:
        if not any(result.get(f"mean_{name}_ms") for result in results):
            continue
        table.add_section()
        for word in words:
            key = f"{word}_{name}_ms"
            table.add_row(figure_name(key), *(_number(result.get(key)) for result in results))
    return table


def ratio_table(ratios: Sequence[Ratio]) -> Table:
    """Returns a comparison as a table."""
    title = "--url / --against, medians of the pairs"
    names = ["load", "figure", "--url", "--against", "ratio", "lowest", "highest", "pairs"]
    table = _table(title, names, 2)
    for ratio in ratios:
        shares = (f"{share:.3f}" for share in (ratio.ratio, ratio.low, ratio.high))
        values = (_number(ratio.value), _number(ratio.against))
        table.add_row(escape(ratio.load), figure_name(ratio.figure), *values, *shares, ratio.pairs)
    return table


def notes(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what a reader must know about the figures: errors first."""
    lines: list[str] = []
    for result in results:
        own = result[OWN]
        lines += [
            f"{own['load']}: {entry['count']} x {kind}: {next(iter(entry['examples']), '')}"
            for kind, entry in own["errors"].items()
        ]
        if own["num_interrupted"]:
            lines.append(f"{own['load']}: stopped with {own['num_interrupted']} requests running")
        if own["client_cpu_share"] > BUSY_SHARE:
            lines.append(
                f"{own['load']}: this client used {own['client_cpu_share']:.0%} of a core: the "
                "figures may be its own"
            )
        if own["send_lag_p99_ms"] > MAX_LAG_MS:
            lines.append(
                f"{own['load']}: requests were sent up to {own['send_lag_p99_ms']:.0f} ms (p99) "
                "late by this client"
            )
    counts = {result[OWN]["token_counts"] for result in results if result["completed"]}
    if counts and counts != {"usage"}:
        lines.append(
            "the server does not report usage: output tokens are counted as chunks with text"
        )
    return lines


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
