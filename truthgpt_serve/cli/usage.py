"""`truthgpt usage`: what the API keys of the service used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from truthgpt_serve.cli._service.table import open_console

if TYPE_CHECKING:
    from rich.table import Table

GROUPS = ("day", "key", "model")
ALWAYS = (
    ("requests", "REQUESTS"),
    ("errors", "ERRORS"),
    ("prompt_tokens", "PROMPT TOKENS"),
    ("cached_tokens", "CACHED"),
    ("completion_tokens", "GENERATED"),
)
WHERE_USED = (
    ("images", "IMAGES"),
    ("megapixel_steps", "MEGAPIXEL-STEPS"),
    ("audio_s", "AUDIO (S)"),
)
"""Columns that are left out where all is zero."""


def _moment(_ctx: click.Context, _param: click.Parameter, text: str | None) -> str | None:
    """Returns what the service takes for a moment."""
    from truthgpt_serve.access.moments import read_moment

    if text is not None and not text.isdecimal():
        try:
            read_moment(text)
        except ValueError as error:
            form = "write it like 2027-01-31, 2027-01-31T12:00:00Z or seconds since the epoch"
            raise click.BadParameter(f"{text[:40]!r} is no moment: {form}") from error
    return text


def _groups(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    """Returns names of groups with commas between them."""
    for name in text.split(",") if text else ():
        if name.strip() not in GROUPS:
            raise click.BadParameter(f"{name[:40]!r} is none of {', '.join(GROUPS)}")
    return text


@click.command()
@click.option(
    "--start", metavar="WHEN", callback=_moment,
    help="2027-01-31, 2027-01-31T12:00:00Z or seconds since the epoch; by default 30 days before "
    "the end.",
)  # fmt: skip
@click.option(
    "--end", metavar="WHEN", callback=_moment,
    help="The first moment that does not count; now by default.",
)  # fmt: skip
@click.option(
    "--group-by", metavar="A,B", default="key", show_default=True, callback=_groups,
    help=f"What gets a row of its own, any of {', '.join(GROUPS)}; '' for the sum of all.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, metavar="N",
    help="Most rows.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the service's JSON, for programs.")
def usage(start: str | None, end: str | None, group_by: str, limit: int, as_json: bool) -> None:
    """Shows what the API keys of the service used.

    Requests, errors, tokens, images and seconds of audio, by whole hours. TRUTHGPT_API_KEY must be
    a key that was made with `truthgpt keys add NAME --admin`.
    """
    from truthgpt_serve.cli._service.client import ServiceClient
    from truthgpt_serve.cli._service.failures import ServiceFault

    given = {"start": start, "end": end, "group_by": group_by, "limit": limit}
    query = urlencode({name: value for name, value in given.items() if value is not None})
    with ServiceClient() as client:
        found = client.get(f"/v1/usage?{query}")
        if not _is_usage(found):
            raise ServiceFault(f"{client.address.shown}: /v1/usage does not list usage")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    open_console().print(table_of(found))
    if found.get("has_more"):
        click.echo("there are more rows: ask for less time, or raise --limit", err=True)


def table_of(found: dict[str, Any]) -> Table:
    """Returns the table of what `/v1/usage` answers, with the sum of its rows."""
    from rich.markup import escape
    from rich.table import Table

    rows, groups = found["data"], [name for name in found["group_by"] if name in GROUPS]
    used = [column for column in WHERE_USED if any(_value(row, column[0]) for row in rows)]
    columns = [*ALWAYS, *used]
    table = Table(box=None, title=_title(found), title_justify="left")
    for name in groups:
        table.add_column(name.upper(), overflow="fold")
    for _, title in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        names = [escape(str(row.get(name, ""))) for name in groups]
        table.add_row(*names, *(_shown(_value(row, field)) for field, _ in columns))
    if len(rows) > 1:
        sums = [sum(_value(row, field) for row in rows) for field, _ in columns]
        names = ["all", *("" for _ in groups[1:])]
        table.add_row(*names, *map(_shown, sums), style="bold")
    return table


def _is_usage(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and isinstance(found.get("group_by"), list)
        and isinstance(found.get("data"), list)
        and all(isinstance(row, dict) for row in found["data"])
    )


def _title(found: dict[str, Any]) -> str:
    from datetime import UTC, datetime

    try:
        ends = [datetime.fromtimestamp(found[name], UTC) for name in ("start", "end")]
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return ""
    return " to ".join(f"{end:%Y-%m-%d %H:%M}" for end in ends) + " UTC"


def _value(row: dict[str, Any], field: str) -> float:
    value = row.get(field)
    return value if isinstance(value, int | float) else 0


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
