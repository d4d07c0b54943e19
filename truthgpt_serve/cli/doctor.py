"""`truthgpt doctor`: what works on this machine, and whether given files can be served here.

`truthgpt_serve.doctor` has the probes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli.main import EXIT_FAULT

if TYPE_CHECKING:
    from truthgpt_serve.doctor import Group

_MAX_NAME = 44


@click.command()
@click.argument("files", nargs=-1, metavar="[CONFIG or SERVE FILE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option(
    "--all", "everything", is_flag=True, help="With files: also all that each family offers."
)
@click.pass_context
def doctor(ctx: click.Context, files: tuple[str, ...], as_json: bool, everything: bool) -> None:
    """Tries what works on this machine, each thing by a real call.

    With files it tries the basics and what each file asks for, which takes seconds; without, or
    with --all, all that each family offers: engines start and compilers run for some minutes. Exits
    with 0 when everything that the files need works, without files when the service itself can run;
    else with 2 and the faults.
    """
    from truthgpt_serve.doctor import diagnose

    diagnosis = diagnose(files, families=everything or not files, tell=_tell)
    if as_json:
        click.echo(json.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False))
    else:
        for group in diagnosis.groups:
            _print(group)
        for fault in diagnosis.faults:
            click.echo(f"fault: {fault}", err=True)
    if diagnosis.faults:
        ctx.exit(EXIT_FAULT)


def _print(group: Group) -> None:
    click.echo(group.title)
    width = min(_MAX_NAME, max((len(probe.name) for probe in group.probes), default=0))
    for probe in group.probes:
        mark = "yes" if probe.works else "NO" if group.needed else "no"
        fix = f" -- {probe.fix}" if probe.fix and not probe.works else ""
        click.echo(f"  {mark:<4}{probe.name:<{width}}  {probe.detail}{fix}".rstrip())
    click.echo()


def _tell(line: str) -> None:
    click.secho(line, dim=True, err=True)
