"""`truthgpt models`: the models of the service, what they do and how they are."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli._service.table import DASH, open_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from truthgpt_serve.cli._service.models import Model, ModelReader

SAMPLE_S = 1.0
"""Between the two readings that a speed needs."""
_STYLES = {"RUNNING": "green", "DEPLOYING": "yellow", "UNHEALTHY": "red", "DEPLOY_FAILED": "red"}
_COLUMNS = (
    "MODEL", "FAMILY", "STATE", "REPLICAS", "ONGOING", "QUEUED", "SPEED", "MEMORY", "CAN", "NOTE",
)  # fmt: skip
_NUMBERS = frozenset(_COLUMNS[3:8])
_WRAPPED_AT = {"MODEL": 24, "CAN": 14, "NOTE": 14}
_LEFT_OUT = ("CAN", "MEMORY", "FAMILY", "SPEED", "QUEUED", "ONGOING", "REPLICAS", "NOTE")
"""In this order, where the terminal is too narrow."""


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Show it anew until Ctrl-C.")
@click.option(
    "--interval",
    type=FiniteRange(min=0.5, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often, with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def models(watch: bool, interval: float, as_json: bool) -> None:
    """Shows the models of the service and their load.

    State, replicas, requests, speed and memory of each.

    A dash stands for what is not known. A narrow terminal shows fewer columns. The speed is that of
    the last second, with --watch of the last interval. What a text model can do is what its card
    says, behind the tokens of prompt and answer together. Memory is that of a model's processes,
    without that of GPUs.
    """
    from truthgpt_serve.cli._service.client import ServiceClient
    from truthgpt_serve.cli._service.models import ModelReader

    if watch and as_json:
        raise click.UsageError("--watch shows a table; leave --json out")
    with ServiceClient() as client:
        reader = ModelReader(client)
        if watch:
            _watch(reader, interval, client.address.shown)
            return
        found = reader.read()
        if any(model.ongoing for model in found):
            time.sleep(SAMPLE_S)
            found = reader.read()
    if as_json:
        click.echo(json.dumps({"models": [model.to_json() for model in found]}, indent=2))
        return
    console = open_console()
    console.print(table_of(found, console.width))
    if any(model.waits_for or model.last_error for model in found):
        console.print("`truthgpt why MODEL` says why a model does not run.", highlight=False)


def _watch(reader: ModelReader, interval: float, address: str) -> None:
    console = open_console()
    tables = _tables(reader, interval, address, console)
    first = next(tables)  # a service that does not answer at first is an error
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            from rich.live import Live

            with Live(first, console=console, auto_refresh=False) as live:
                for table in tables:
                    live.update(table, refresh=True)
        else:  # what reads a pipe gets each as it comes
            for table in chain([first], tables):
                console.print(table)
                sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _tables(
    reader: ModelReader, interval: float, address: str, console: Console
) -> Iterator[Table]:
    """Yields a table now, and one after each interval."""
    from truthgpt_serve.cli._service.failures import ServiceFault

    found, title = reader.read(), address
    while True:
        yield table_of(found, console.width, title)
        time.sleep(interval)
        try:
            found, title = reader.read(), address
        except ServiceFault as fault:
            title = f"{fault.message}; this is what was known before"


def table_of(found: list[Model], width: int, title: str | None = None) -> Table:
    """Returns the table of models, without the columns for which there is no room.

    Args:
        found: The models.
        width: Of the terminal, in characters.
        title: What stands above it.
    """
    rows = [_cells(model) for model in found]
    names = list(_COLUMNS)
    for name in _LEFT_OUT:
        if _width_of(rows, names) <= width:
            break
        names.remove(name)
    return _draw(rows, names, title)


def _cells(model: Model) -> dict[str, str]:
    return {
        "MODEL": model.name,
        "FAMILY": model.family or DASH,
        "STATE": model.state or DASH,
        "REPLICAS": _number(model.num_replicas),
        "ONGOING": _number(model.ongoing),
        "QUEUED": _number(model.queued),
        "SPEED": _speed(model),
        "MEMORY": _size(model.memory_bytes),
        "CAN": _can(model),
        "NOTE": _note(model),
    }


def _width_of(rows: list[dict[str, str]], names: list[str]) -> int:
    """Returns how many characters the columns need; those that are wrapped need few."""
    from rich.cells import cell_len

    widths = [max(cell_len(text) for text in (name, *[r[name] for r in rows])) for name in names]
    most = [_WRAPPED_AT.get(name, width) for name, width in zip(names, widths, strict=True)]
    return sum(min(pair) + 2 for pair in zip(widths, most, strict=True))


def _draw(rows: list[dict[str, str]], names: list[str], title: str | None) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, title=escape(title) if title else None, title_justify="left")
    for name in names:
        if name in _NUMBERS:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        style = _STYLES.get(row["STATE"], "")
        shown = {name: escape(row[name]) for name in names}
        if style:
            shown["STATE"] = f"[{style}]{shown['STATE']}[/]"
        table.add_row(*shown.values())
    return table


def _number(value: int | None) -> str:
    return DASH if value is None else str(value)


def _speed(model: Model) -> str:
    rate = 0.0 if model.rate is None and model.ongoing == 0 else model.rate
    if rate is None or model.rate_unit is None:
        return DASH
    return (
        f"{rate:.0f} {model.rate_unit}/s"
        if rate >= 10 or not rate
        else (f"{rate:.1f} {model.rate_unit}/s")
    )


def _size(value: int | None) -> str:
    if value is None:
        return DASH
    return f"{value / (1 << 30):.1f} GiB" if value >= 1 << 30 else f"{value / (1 << 20):.0f} MiB"


def _can(model: Model) -> str:
    from truthgpt_serve.cli._service.models import CAPABILITIES

    length = model.capabilities.get("context_length")
    parts = [f"{length} tokens"] if length else []
    parts += [title for name, title in CAPABILITIES.items() if model.capabilities.get(name)]
    return ", ".join(parts) or DASH


def _note(model: Model) -> str:
    if model.last_error or model.waits_for:
        return model.last_error or model.waits_for or ""
    parts = (("adapters", model.adapters), ("also", model.aliases))
    return "; ".join(f"{title}: {', '.join(names)}" for title, names in parts if names)
