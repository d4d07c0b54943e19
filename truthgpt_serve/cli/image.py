"""`truthgpt image`: has an image model draw, saves the images, and shows them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_serve.cli._image.show import WAYS, find_way, render
from truthgpt_serve.cli._service.completion import complete_models
from truthgpt_serve.cli._service.numbers import FiniteRange
from truthgpt_serve.cli.main import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from truthgpt_serve.cli._image.drawing import Step

TASK = "image-generation"


@click.command()
@click.argument(
    "words", nargs=-1, required=True, metavar="[MODEL] PROMPT", shell_complete=complete_models
)
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="The file, a PNG; - is standard output. By default MODEL-SEED.png.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
@click.option("--n", type=click.IntRange(1, 128), default=1, help="How many images.")
@click.option("--seed", type=click.IntRange(min=0), help="Repeats an image.")
@click.option("--size", metavar="WxH", help="Pixels, such as 512x512.")
@click.option("--steps", type=click.IntRange(min=1), help="Denoising steps.")
@click.option("--negative-prompt", help="What must not be in the image.")
@click.option("--guidance-scale", type=FiniteRange(min=0), help="How closely to follow.")
@click.option(
    "--show", type=click.Choice(WAYS), default="auto", help="How the terminal shows an image."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def image(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    show: str,
    as_json: bool,
    **fields: Any,
) -> None:
    """Draws images with a model of the service.

    Without MODEL with the only one, or the one that you choose.

    Saves each image in a new file and prints its name. A terminal that can shows the image, too.
    """
    from truthgpt_serve.cli._image.drawing import draw
    from truthgpt_serve.cli._image.files import Target
    from truthgpt_serve.cli._service.choice import choose_model
    from truthgpt_serve.cli._service.client import ServiceClient

    model, prompt = _named(words)
    piped = out is not None and str(out) == "-"
    if piped and (fields["n"] > 1 or as_json or sys.stdout.isatty()):
        raise click.UsageError("--out - writes one image into a pipe or file, and nothing else")
    way = find_way() if show == "auto" and not as_json else show
    with ServiceClient() as client:
        model = model or choose_model(client, TASK, ask=sys.stdin.isatty())
        given = {name: value for name, value in fields.items() if value is not None}
        request = {"model": model, "prompt": prompt, **given}
        target = None if piped else Target(out, model, fields["n"], overwrite=overwrite)
        saved = []
        try:
            with _progress(fields["n"]) as follow:
                for drawn in draw(client, request, follow):
                    if target is None:
                        sys.stdout.buffer.write(drawn.data)
                        continue
                    saved.append((target.save(drawn), drawn))
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        finally:
            _tell(saved, way, as_json=as_json)


def _named(words: tuple[str, ...]) -> tuple[str | None, str]:
    if len(words) > 2:
        raise click.UsageError('put the prompt in quotes: truthgpt image MODEL "a red circle"')
    prompt = words[-1]
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return (words[0] if len(words) == 2 else None), prompt


def _tell(saved: list[tuple[Path, Any]], way: str, *, as_json: bool) -> None:
    """Prints the files of what was saved, and shows it."""
    if as_json:
        files = [
            {"file": str(path), "index": drawn.index, "seed": drawn.seed, "size": drawn.size}
            for path, drawn in saved
        ]
        click.echo(json.dumps({"images": files}, indent=2, ensure_ascii=False))
        return
    for path, drawn in saved:
        if way not in ("auto", "none"):
            sys.stdout.write(render(drawn.data, way))
        seed = "" if drawn.seed is None else f"seed {drawn.seed}"
        click.echo(path)
        if sys.stdout.isatty():
            click.secho("  ".join(filter(None, [drawn.size, seed])), dim=True, err=True)


@contextlib.contextmanager
def _progress(number: int) -> Iterator[Callable[[Step], None]]:
    """Yields what shows each step of each image on a terminal; in a log it shows nothing."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        names = ["image"] if number == 1 else [f"image {index}" for index in range(number)]
        tasks = [bars.add_task(f"{name}: waits", total=None) for name in names]

        def follow(step: Step) -> None:
            if not 0 <= step.index < number:
                return
            name = names[step.index]
            if step.step is None:
                place = step.queue_position
                text = f"{name}: waits" if place is None else f"{name}: {place} before it"
                bars.update(tasks[step.index], description=text)
            else:
                bars.update(
                    tasks[step.index],
                    description=f"{name}: step",
                    completed=step.step,
                    total=step.num_steps,
                )

        yield follow
