"""`truthgpt validate`: checks files and prints every fault.

Knows no rule: `truthgpt_serve.validate` has them.
"""

from __future__ import annotations

import click

from truthgpt_serve.cli.main import EXIT_FAULT


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--machine",
    is_flag=True,
    help="Also import each family and compare the hardware asked for with this machine's.",
)
@click.option(
    "--progress",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Say every so many seconds which module is being imported.",
)
@click.pass_context
def validate(
    ctx: click.Context, files: tuple[str, ...], machine: bool, progress: float | None
) -> None:
    """Checks Serve files with all their models, or single models' files.

    Starts nothing. Exits with 0 if every FILE is right, else with 2 after a list of all faults.
    """
    from truthgpt_serve.cluster.progress import telling_progress
    from truthgpt_serve.validate import validate_file

    num_faults = 0
    for file in files:
        with telling_progress(progress, click.echo):
            report = validate_file(file, machine=machine)
        num_faults += len(report.faults)
        for line in report.checked:
            click.echo(f"ok: {line}")
        for line in report.notes:
            click.echo(f"note: {line}")
        for fault in report.faults:
            click.echo(f"fault: {fault}", err=True)
    if num_faults:
        click.echo(f"{num_faults} fault{'s' if num_faults > 1 else ''}", err=True)
        ctx.exit(EXIT_FAULT)
