"""`truthgpt init`: writes the file of a new model, and adds it to the Serve file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.errors import ConfigError

if TYPE_CHECKING:
    from truthgpt_serve.cli._init.guess import Guess
    from truthgpt_serve.cli._init.model_file import NewModel

TASKS = ("text-generation", "image-generation", "embedding", "tensor", "custom")
"""Those of `truthgpt_serve.contract.TASKS`, which `--help` need not import."""


@click.command()
@click.argument("name", required=False)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="The weights: a folder or .onnx file, a name in the hub, or another server's address.",
)
@click.option("--task", type=click.Choice(TASKS), help="What it does; by default its files say it.")
@click.option("--family", help="What runs it; by default as its files and the task say.")
@click.option("--gpus", type=FiniteRange(min=0), help="GPUs for each replica.")
@click.option(
    "--serve-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The Serve file; by default serve.yaml in the configurations' folder.",
)
@click.option("--no-serve", is_flag=True, help="Leave the Serve file as it is.")
def init(
    name: str | None,
    source: str | None,
    task: str | None,
    family: str | None,
    gpus: float | None,
    serve_file: Path | None,
    no_serve: bool,
) -> None:
    """Writes the file of a new model and adds it to the service.

    The file has comments; the model is added to the Serve file, which keeps its own.

    For example: truthgpt init qwen --from Qwen/Qwen3-0.6B. Asks for what is missing on a terminal.
    Overwrites nothing, and takes back what it wrote if the files do not pass `truthgpt validate`.
    """
    from truthgpt_serve.cli._init.write import Plan
    from truthgpt_serve.config.paths import config_dir

    name = _asked("name", "name of the model, as clients send it", name)
    source = _asked("--from", "weights: a folder, a name in the hub, or an address", source)
    folder = config_dir()
    serve = None if no_serve else serve_file or folder / "serve.yaml"
    plan = Plan(folder, name, serve)  # before the hub is asked
    model = _describe(name, source, task, family, gpus)
    for line in plan.carry_out(model):
        click.echo(line)


def _asked(option: str, question: str, given: str | None) -> str:
    if given is None and sys.stdin.isatty():
        given = click.prompt(question, err=True)
    if not given or not given.strip():
        raise click.UsageError(f"give {option}: {question}")
    return given.strip()


def _describe(
    name: str, source: str, task: str | None, family: str | None, gpus: float | None
) -> NewModel:
    from truthgpt_serve.cli._init.guess import Guess, GuessError, guess
    from truthgpt_serve.cli._init.model_file import NewModel
    from truthgpt_serve.config.model import DEFAULT_FAMILIES

    try:
        found = guess(source, name)
    except GuessError as error:
        if task is None and family is None:
            raise click.UsageError(str(error)) from error
        found = Guess(source)
    chosen = task or found.task or _choose_task(found)
    own = family or (found.family if chosen == found.task else None)
    own = own or DEFAULT_FAMILIES.get(chosen, "custom")
    _check_family(own, chosen)
    kept = own == found.family and chosen == found.task
    return NewModel(
        name=name,
        task=chosen,
        family=own,
        name_or_path=found.name_or_path,
        gpus=gpus,
        engine=found.engine if kept else {},
        adapters=found.adapters,
        why=found.why if kept else "",
    )


def _choose_task(found: Guess) -> str:
    reason = found.why or "nothing says what it does"
    if sys.stdin.isatty():
        click.echo(f"{found.name_or_path}: {reason}", err=True)
        return str(click.prompt("task", type=click.Choice(TASKS), default=TASKS[0], err=True))
    click.echo(f"note: {reason}: it is taken for {TASKS[0]}; --task says another", err=True)
    return TASKS[0]


def _check_family(family: str, task: str) -> None:
    from truthgpt_serve.errors import Fault
    from truthgpt_serve.registry import MODEL_REGISTRY

    spec = MODEL_REGISTRY.find(family)
    if task not in spec.tasks:
        able = [name for name in MODEL_REGISTRY if task in MODEL_REGISTRY[name].tasks]
        message = f"the family {family} is for {', '.join(spec.tasks)}, not for {task}"
        raise ConfigError([Fault("--family", message, f"for {task}: {', '.join(able)}")])
