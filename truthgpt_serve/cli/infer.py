"""`truthgpt infer`: one request to the model of a YAML file, without a server.

Images and arrays are written as any class may return them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import click

from truthgpt_serve.errors import TruthGPTError

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("config")
@click.option("--text", help="Inputs {'text': TEXT}, for a text model.")
@click.option("--prompt", help="Inputs {'prompt': PROMPT}, for an image model.")
@click.option("--image", type=_FILE, help="Inputs {'image': an image file}.")
@click.option("--audio", type=_FILE, help="Inputs {'audio': a recording}, for speech.")
@click.option(
    "--inputs",
    "inputs_file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help='A JSON file with the inputs; - reads standard input. A value {"path": "x.png"} stands '
    "for an image, a recording or a .npy array.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option(
    "--out",
    type=_FILE,
    help="Writes the output there: an image as an image file, anything else as JSON.",
)
@click.option("--stream", is_flag=True, help="Prints each piece as it comes.")
def infer(
    config: str,
    text: str | None,
    prompt: str | None,
    image: Path | None,
    audio: Path | None,
    inputs_file: Path | None,
    max_new_tokens: int | None,
    out: Path | None,
    stream: bool,
) -> None:
    """Runs the model of CONFIG, a YAML file, on one request and prints what it returns.

    Only the answer goes to standard output; what libraries have to say goes to standard error.
    """
    from truthgpt_serve.cli._infer_inputs import check_given, decode, read_inputs
    from truthgpt_serve.config import load_model_config
    from truthgpt_serve.runner import run_infer

    if stream and out is not None:
        raise click.UsageError("--stream prints; leave --out out")
    inputs = {} if inputs_file is None else read_inputs(inputs_file)
    inputs |= {
        name: value for name, value in (("text", text), ("prompt", prompt)) if value is not None
    }
    files = {"image": image, "audio": audio}
    inputs |= {name: {"path": str(path)} for name, path in files.items() if path is not None}
    check_given(inputs, load_model_config(config).task)
    if max_new_tokens is not None:
        inputs["max_new_tokens"] = max_new_tokens
    with _answers_only() as answers, _named_failure():
        if stream:
            _print_stream(config, inputs, answers)
            return
        outputs = run_infer(config, inputs, prepare=decode)
    _write(outputs, out)


@contextlib.contextmanager
def _answers_only() -> Iterator[TextIO]:
    """Yields standard output, and sends what else is written there to standard error.

    Engines log there, some from processes of their own, so the descriptor itself is turned over.
    """
    shown = sys.stdout
    try:
        real = shown.fileno() == 1 and sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        real = False  # replaced, as by a test
    if not real:
        yield shown
        return
    shown.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        with os.fdopen(os.dup(kept), "w", encoding=shown.encoding, errors=shown.errors) as answers:
            yield answers
    finally:
        sys.stdout = shown
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _named_failure() -> Iterator[None]:
    """Ends with the traceback and one line, when the model's own code fails."""
    try:
        yield
    except (TruthGPTError, click.ClickException):
        raise
    except Exception as error:
        traceback.print_exc()
        message = f"the model failed: {type(error).__name__}: {error}"
        raise click.ClickException(message) from error


def _print_stream(config: str, inputs: dict[str, Any], answers: TextIO) -> None:
    from truthgpt_serve.cli._infer_inputs import decode
    from truthgpt_serve.runner import run_stream
    from truthgpt_serve.server.infer.values import encode_value

    for item in run_stream(config, inputs, prepare=decode):
        if isinstance(item, dict) and isinstance(item.get("text"), str):
            click.echo(item["text"], file=answers, nl=False)
        else:
            click.echo(encode_value(item, "stream").decode(), file=answers)
        answers.flush()
    click.echo(file=answers)


def _write(outputs: Any, out: Path | None) -> None:
    from truthgpt_serve.cli._infer_inputs import IMAGES
    from truthgpt_serve.server.infer.values import encode_value

    if out is None:
        click.echo(encode_value(outputs, "infer"))
        return
    image = outputs.get("image") if isinstance(outputs, dict) else None
    try:
        if image is not None and callable(getattr(image, "save", None)):
            image.save(out)
        elif out.suffix.lower() in IMAGES:
            raise ValueError("the model returned no image; name a .json file")
        else:
            out.write_bytes(encode_value(outputs, "infer") + b"\n")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--out {out} cannot be written: {error}") from error
    click.echo(f"wrote {out}", err=True)
