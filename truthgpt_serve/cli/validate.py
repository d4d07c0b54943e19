"""`truthgpt validate`: checks files and prints every fault.

`truthgpt_serve.validate` has the rules.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli.main import EXIT_FAULT
from truthgpt_serve.garbage import rare_collections

if TYPE_CHECKING:
    from truthgpt_serve.validate import Report


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--machine",
    is_flag=True,
    help="Also import each family and compare the hardware asked for with this machine's.",
)
@click.option(
    "--progress",
    type=FiniteRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Say every so many seconds which module is being imported.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def validate(
    ctx: click.Context, files: tuple[str, ...], machine: bool, progress: float | None, as_json: bool
) -> None:
    """Checks Serve files with all their models, or single models' files.

    Starts nothing. Exits with 0 if every FILE is right, else with 2 after a list of all faults.
    """
    from truthgpt_serve.cluster.service.progress import telling_progress

    with rare_collections():
        _import_ray_without_pandas()
        from truthgpt_serve.validate import validate_file

    reports: dict[str, Report] = {}
    for file in dict.fromkeys(files):
        with telling_progress(progress, lambda line: click.echo(line, err=as_json)):
            reports[file] = validate_file(file, machine=machine)
        if not as_json:
            _print(reports[file])
    num_faults = sum(len(report.faults) for report in reports.values())
    if as_json:
        files_found = [_to_json(file, report) for file, report in reports.items()]
        value = {"right": not num_faults, "files": files_found}
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif num_faults:
        click.echo(f"{num_faults} fault{'s' if num_faults > 1 else ''}", err=True)
    if num_faults:
        ctx.exit(EXIT_FAULT)


def _import_ray_without_pandas() -> None:
    """Imports Ray Serve's schema as on a machine without pandas, in two thirds of the time.

    Ray Serve uses pandas where it is installed, to write a data frame as JSON: for a replica's
    answers, not here. Afterwards pandas can be imported as before, by a model's class for instance.
    """
    if "pandas" in sys.modules:
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        importlib.import_module("ray.serve.schema")
    finally:
        del sys.modules["pandas"]


def _print(report: Report) -> None:
    for line in report.checked:
        click.echo(f"ok: {line}")
    for line in report.notes:
        click.echo(f"note: {line}")
    for fault in report.faults:
        click.echo(f"fault: {fault}", err=True)


def _to_json(file: str, report: Report) -> dict[str, object]:
    return {
        "file": file,
        "checked": report.checked,
        "notes": report.notes,
        "faults": [asdict(fault) for fault in report.faults],
    }
