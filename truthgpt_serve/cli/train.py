"""`truthgpt train`: trains the model of a YAML file.

`truthgpt_serve.training` has the methods.
"""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_serve.cli._serving.options import serve_options
from truthgpt_serve.errors import ConfigError


@click.command()
@click.argument("config")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that train together; by default as many as `hardware.gpus`, or one.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the same run.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The run's folder; by default runs/<run_name>.",
)
@click.option("--plan", is_flag=True, help="Print what would be done, and stop.")
@serve_options
@click.pass_context
def train(
    ctx: click.Context,
    config: str,
    workers: int | None,
    resume: bool,
    out: Path | None,
    plan: bool,
    serve_name: str | None,
    serve_file: Path | None,
) -> None:
    """Trains the model of CONFIG, a YAML file, and prints the lines that serve the result.

    Ctrl-C saves a checkpoint and stops; --resume then goes on as if nothing had been. Exits with
    130 if it was stopped.
    """
    from truthgpt_serve.checks import check_model
    from truthgpt_serve.cli._serving.options import serve_path, serve_result
    from truthgpt_serve.config import load_model_config
    from truthgpt_serve.training.run import run_folder, run_training
    from truthgpt_serve.training.stopping import EXIT_STOPPED

    model = load_model_config(config)
    faults = check_model(model, for_training=True)
    if faults:
        raise ConfigError(faults)
    serve = serve_path(serve_file, serve_name)
    if serve_name is not None:
        from truthgpt_serve.cli._serving.place import check_place

        check_place(serve, serve_name)  # before hours of training
    try:
        finished = run_training(
            model, say=click.echo, num_workers=workers, resume=resume, out=out, plan_only=plan
        )
    except KeyboardInterrupt:
        click.echo("stopped before the first step; nothing is kept of it", err=True)
        finished = False
    if not finished:
        ctx.exit(EXIT_STOPPED)
    if finished and serve_name is not None and not plan:
        serve_result(run_folder(model, out), serve_name, serve)
