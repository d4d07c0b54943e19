"""`--serve NAME` and `--serve-file`, of the commands that have a result to serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def serve_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    serve = click.option(
        "--serve",
        "serve_name",
        metavar="NAME",
        help="Serve it under this name: adds it to the Serve file, and applies that.",
    )
    file = click.option(
        "--serve-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The Serve file; by default serve.yaml in the configurations' folder.",
    )
    return serve(file(command))


def serve_path(given: Path | None, name: str | None) -> Path:
    """Returns the Serve file that is meant.

    Raises:
        click.UsageError: A file was named, but no model.
    """
    from truthgpt_serve.config.paths import config_dir

    if given is not None and name is None:
        raise click.UsageError("--serve-file needs --serve NAME, the model's name")
    return given or config_dir() / "serve.yaml"


def serve_result(run: Path, name: str, serve: Path) -> None:
    """Adds the result of a run to a Serve file, and applies it to the service that runs.

    Raises:
        click.ClickException: A file cannot be changed, or the service refuses.
    """
    from truthgpt_serve.cli._serving.deploy import check_same, deploy
    from truthgpt_serve.cli._serving.place import place
    from truthgpt_serve.cli._serving.service import find_service
    from truthgpt_serve.training.run import find_served

    served, service = find_served(run, name), find_service()
    if service is not None:
        check_same(service, serve, served.application_name)
    placed = place(serve, served)
    click.echo(placed.line)
    if service is None:
        click.echo(f"no service runs here; start it: make serve CONFIG={serve}")
        return
    deploy(service, serve, placed.application, click.echo)
