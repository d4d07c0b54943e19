"""`truthgpt deploy`: applies a Serve file to the service that runs."""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_serve.cli._service.completion import complete_models
from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli.main import EXIT_FAILED, EXIT_FAULT


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--reload",
    "again",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_models,
    help="Load this application again, though nothing of it has changed; may be given again.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=FiniteRange(min=0, max=86400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the models.",
)
@click.pass_context
def deploy(ctx: click.Context, file: Path, again: tuple[str, ...], timeout_s: float) -> None:
    """Makes the service that runs be as FILE says, and waits for its models.

    Loads again the models whose entry or own file has changed, adds new ones and takes others out,
    as `serve deploy` does. A file with a fault is not applied. Exits with 1 if a model does not run
    in the end.
    """
    from truthgpt_serve.cli._serving.deploy import deploy_all
    from truthgpt_serve.cli._serving.service import find_service
    from truthgpt_serve.validate import validate_file

    report = validate_file(str(file))
    for fault in report.faults:
        click.echo(f"fault: {fault}", err=True)
    if report.faults:
        ctx.exit(EXIT_FAULT)
    service = find_service()
    if service is None:
        raise click.ClickException(f"no service runs here; start it: make serve CONFIG={file}")
    for note in report.notes:
        click.echo(f"note: {note}")
    if lines := deploy_all(service, file, again, timeout_s, click.echo):
        for line in lines:
            click.echo(line, err=True)
        ctx.exit(EXIT_FAILED)
