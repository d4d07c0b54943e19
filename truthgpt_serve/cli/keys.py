"""`truthgpt keys`: makes, lists and withdraws the keys of the service's clients."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli._service.table import DASH, open_console

if TYPE_CHECKING:
    from truthgpt_serve.access.key_file import KeyEntry

SERVE_FILE = "serve.yaml"
DEFAULT_FILE = "keys.yaml"

_FILE = click.option(
    "--file", "file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="The file with the keys. By default TRUTHGPT_KEYS_FILE, else the one that the Serve file "
    "names, else configs/keys.yaml.",
)  # fmt: skip


@click.group()
def keys() -> None:
    """Makes, lists and withdraws keys of clients.

    The file holds the SHA-256 of each key, so that a key is shown only once, when it is made. A
    running service takes a change up within 2 seconds.
    """


@keys.command()
@click.argument("name")
@_FILE
@click.option("--models", metavar="A,B", help="Models that it may use; * stands for any letters.")
@click.option("--requests-per-minute", type=int, metavar="N", help="Requests in a minute.")
@click.option("--tokens-per-minute", type=int, metavar="N", help="Tokens in a minute.")
@click.option(
    "--image-megapixel-steps-per-minute", type=float, metavar="N",
    help="Denoising steps times megapixels in a minute.",
)  # fmt: skip
@click.option("--max-concurrent", type=int, metavar="N", help="Requests at the same time.")
@click.option("--priority", type=int, metavar="P", help="The higher, the less it waits.")
@click.option("--weight", type=float, metavar="W", help="Its share where models are busy; 1.")
@click.option("--expires", metavar="WHEN", help="2027-01-31, 2027-01-31T12:00:00Z, or 90d.")
@click.option("--admin", is_flag=True, help="It may read what all keys use.")
def add(name: str, file: Path | None, models: str | None, **options: Any) -> None:
    """Makes a key and prints it, this once."""
    from truthgpt_serve.access.key_edit import add_key

    path = _find_file(file)
    fields: dict[str, Any] = {"name": name, **_given(options)}
    if models is not None:
        fields["models"] = [part.strip() for part in models.split(",") if part.strip()]
    if "expires" in fields:
        fields["expires"] = _expiry(fields["expires"])
    is_new = not path.exists()
    key = add_key(path, fields)
    if is_new:
        click.echo(
            f"made {path}; the Serve file names it in the `args` of every application: "
            f"auth: {{keys_file: {path.name if file is None else file}}}",
            err=True,
        )
    _show_key(key, name)


@keys.command()
@click.argument("name")
@_FILE
def revoke(name: str, file: Path | None) -> None:
    """Withdraws a key: within 2 seconds it is refused."""
    from truthgpt_serve.access.key_edit import revoke_key

    path = _find_file(file)
    revoke_key(path, name)
    click.echo(f"revoked {name} in {path}", err=True)


@keys.command()
@click.argument("name")
@_FILE
@click.option(
    "--grace", type=FiniteRange(min=0, max=60 * 24 * 365), default=0.0, metavar="MINUTES",
    help="How long the former key still works.", show_default=True,
)  # fmt: skip
def rotate(name: str, file: Path | None, grace: float) -> None:
    """Puts a new key in the place of one and prints it, this once; its limits stay."""
    from truthgpt_serve.access.key_edit import rotate_key

    _show_key(rotate_key(_find_file(file), name, grace * 60), name)


@keys.command(name="list")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def list_keys(file: Path | None, as_json: bool) -> None:
    """Lists the keys: their names and limits, never the keys."""
    from truthgpt_serve.access.key_file import read_keys, reread_keys

    path = _find_file(file)
    entries = read_keys(path).keys
    if not entries and reread_keys(path) is None:
        click.echo(
            f"{path} is empty: a service that runs keeps the keys that it has; "
            "`keys: []` withdraws all",
            err=True,
        )
    if as_json:
        found = [{**_public(entry), "state": _state(entry)} for entry in entries]
        click.echo(json.dumps({"keys": found}, indent=2))
        return
    _print_table(entries)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in options.items() if value is not None and value is not False
    }


def _expiry(text: str) -> str:
    from datetime import UTC, datetime

    from truthgpt_serve.access.moments import read_expiry, write_moment

    now = datetime.now(UTC)
    try:
        moment = read_expiry(text, now)
        written = write_moment(moment)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from error
    if moment <= now:
        message = f"{written} is in the past: the key would never work"
        raise click.BadParameter(message, param_hint="--expires")
    return written


def _show_key(key: str, name: str) -> None:
    """Shows a key that the file has already.

    Raises:
        click.ClickException: Nobody has seen it.
    """
    with contextlib.suppress(OSError):
        click.echo(f"the key of {name}; it is not shown again:", err=True)
    try:
        click.echo(key)
    except OSError as error:
        message = (
            f"the output cannot be written: {error.strerror}; the key of {name} is made and lost"
        )
        fix = f"make another: truthgpt keys rotate {name}"
        raise click.ClickException(f"{message} ({fix})") from error


def _find_file(file: Path | None) -> Path:
    """Returns the file to change; a place that is not there yet is named all the same."""
    from truthgpt_serve.access.settings import KEYS_VARIABLE
    from truthgpt_serve.config.auth import NONE
    from truthgpt_serve.config.paths import config_dir

    if file is not None:
        return file
    given = os.environ.get(KEYS_VARIABLE, "").strip()
    if given and given != NONE:
        return _placed(given)
    named = _named_by(config_dir() / SERVE_FILE)
    return _placed(named) if named is not None else config_dir() / DEFAULT_FILE


def _placed(name: str) -> Path:
    """Returns where a configuration's file is, or would be."""
    from truthgpt_serve.config.paths import config_dir, expand

    path = expand(name)
    return path if path.is_absolute() or path.exists() else config_dir() / path


def _named_by(serve_file: Path) -> str | None:
    """Returns the file that a Serve file names, as far as it can be read."""
    from truthgpt_serve.config.load import read_file
    from truthgpt_serve.config.variables import VariableError, expand
    from truthgpt_serve.errors import ConfigError

    try:
        data, _ = read_file(serve_file)
        args = [one.get("args") or {} for one in data["applications"]]
        names = [each["auth"]["keys_file"] for each in args if isinstance(each.get("auth"), dict)]
        return expand(str(names[0])) if names else None
    except (ConfigError, VariableError, KeyError, TypeError, AttributeError):
        return None


def _public(entry: KeyEntry) -> dict[str, Any]:
    return entry.model_dump(exclude={"sha256", "previous"})


def _state(entry: KeyEntry) -> str:
    from datetime import UTC, datetime

    from truthgpt_serve.access.moments import read_moment

    now = datetime.now(UTC)
    if entry.expires is not None and read_moment(entry.expires) <= now:
        return "expired"
    if entry.previous is not None and read_moment(entry.previous.until) > now:
        return f"rotated; the former key works until {entry.previous.until}"
    return "active"


def _print_table(entries: list[KeyEntry]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for title in ("NAME", "MODELS", "LIMITS", "PRIORITY", "WEIGHT", "EXPIRES", "CREATED", "STATE"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        table.add_row(
            escape(entry.name) + (" (admin)" if entry.admin else ""),
            escape(", ".join(entry.models or ["all"])),
            _limits(entry),
            str(entry.priority),
            f"{entry.weight:g}",
            entry.expires or DASH,
            entry.created or DASH,
            _state(entry),
        )
    open_console().print(table)


def _limits(entry: KeyEntry) -> str:
    named = (
        ("requests/min", entry.requests_per_minute),
        ("tokens/min", entry.tokens_per_minute),
        ("megapixel-steps/min", entry.image_megapixel_steps_per_minute),
        ("at once", entry.max_concurrent),
    )
    return ", ".join(f"{_number(value)} {what}" for what, value in named if value) or DASH


def _number(value: float) -> str:
    """Writes a limit in full; `:g` would round what has more than six digits."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")
