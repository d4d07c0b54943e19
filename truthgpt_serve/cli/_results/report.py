"""`truthgpt report`: a page on one run, or on several side by side.

`truthgpt_serve.training.report` writes it.
"""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file; by default report.html in the folder of the first run.",
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Writes an HTML page on RUNS, the folders of training runs.

    It needs no network and no other file. A run that goes on may be looked at, too.
    """
    from truthgpt_serve.training.errors import TrainingError
    from truthgpt_serve.training.report import write_report

    try:
        click.echo(f"wrote {write_report(runs, out)}")
    except OSError as error:
        raise TrainingError(f"the report cannot be written: {error}") from error
