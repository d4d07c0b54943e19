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
    from rich.table import Table

    from truthgpt_serve.cli._service.models import Model, ModelReader

SAMPLE_S = 1.0
"""Between the two readings that a speed needs."""
_STYLES = {"RUNNING": "green", "DEPLOYING": "yellow", "UNHEALTHY": "red", "DEPLOY_FAILED": "red"}


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

    A dash stands for what is not known. The speed is that of the last second, with --watch of the
    last interval. What a text model can do is what its card says, behind the tokens of prompt and
    answer together. Memory is that of a model's processes, without that of GPUs.
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
    console.print(table_of(found))
    if any(model.waits_for or model.last_error for model in found):
        console.print("`truthgpt why MODEL` says why a model does not run.", highlight=False)


def _watch(reader: ModelReader, interval: float, address: str) -> None:
    console = open_console()
    tables = _tables(reader, interval, address)
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


def _tables(reader: ModelReader, interval: float, address: str) -> Iterator[Table]:
    """Yields a table now, and one after each interval."""
    from truthgpt_serve.cli._service.failures import ServiceFault

    found, title = reader.read(), address
    while True:
        yield table_of(found, title)
        time.sleep(interval)
        try:
            found, title = reader.read(), address
        except ServiceFault as fault:
            title = f"{fault.message}; this is what was known before"


def table_of(found: list[Model], title: str | None = None) -> Table:
    """Returns the table of models.

    Args:
        found: The models.
        title: What stands above it.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, title=escape(title) if title else None, title_justify="left")
    for name in ("MODEL", "FAMILY", "STATE"):
        table.add_column(name, overflow="fold")
    for name in ("REPLICAS", "ONGOING", "QUEUED", "SPEED", "MEMORY"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("CAN", overflow="fold")
    table.add_column("NOTE", overflow="fold")
    for model in found:
        style = _STYLES.get(model.state or "", "")
        table.add_row(
            escape(model.name),
            escape(model.family or DASH),
            f"[{style}]{escape(model.state)}[/]" if style and model.state else model.state or DASH,
            _number(model.num_replicas),
            _number(model.ongoing),
            _number(model.queued),
            _speed(model),
            _size(model.memory_bytes),
            _can(model),
            escape(_note(model)),
        )
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
