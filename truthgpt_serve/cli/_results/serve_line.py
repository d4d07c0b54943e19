"""`truthgpt serve-line`: the YAML that serves what a run has made."""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_serve.cli._serving.options import serve_options


@click.command("serve-line")
@click.argument("run", type=click.Path(path_type=Path))
@serve_options
def serve_line(run: Path, serve_name: str | None, serve_file: Path | None) -> None:
    """Prints the YAML that serves the result of RUN, or with --serve does it.

    RUN is a run's folder, or a folder of a result in it, such as the merged model.
    """
    from truthgpt_serve.cli._serving.options import serve_path, serve_result
    from truthgpt_serve.training.run import describe_result

    serve = serve_path(serve_file, serve_name)
    if serve_name is not None:
        serve_result(run, serve_name, serve)
        return
    for line in describe_result(run):
        click.echo(line)
