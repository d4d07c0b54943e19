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
    from truthgpt_serve.cli._infer_inputs import check_given, read_inputs
    from truthgpt_serve.cli._service.utf8 import check_text
    from truthgpt_serve.config import load_model_config

    if stream and out is not None:
        raise click.UsageError("--stream prints; leave --out out")
    check_text(text or "", "--text")
    check_text(prompt or "", "--prompt")
    inputs = {} if inputs_file is None else read_inputs(inputs_file)
    inputs |= {
        name: value for name, value in (("text", text), ("prompt", prompt)) if value is not None
    }
    files = {"image": image, "audio": audio}
    inputs |= {name: {"path": str(path)} for name, path in files.items() if path is not None}
    task = load_model_config(config).task
    check_given(inputs, task)
    if max_new_tokens is not None:
        inputs["max_new_tokens"] = max_new_tokens
    with _answers_only() as answers, _named_failure():
        if stream:
            _print_stream(config, task, inputs, answers)
            return
        outputs = _answer(config, task, inputs)
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
    """Ends with one line when the model's own code fails, and with the traceback where it helps."""
    try:
        yield
    except (TruthGPTError, click.ClickException):
        raise
    except ModuleNotFoundError as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        message = f"the model failed: {at.filename}:{at.lineno}: {error} (install it)"
        raise click.ClickException(message) from error
    except Exception as error:
        traceback.print_exc()
        message = f"the model failed: {type(error).__name__}: {error}"
        raise click.ClickException(message) from error


class _Checked:
    """Makes the inputs ready, and has what comes back checked as the service checks it."""

    def __init__(self, task: str) -> None:
        self._task = task
        self.streams = False
        self.check: Any = None

    def prepare(self, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the inputs for the loaded model."""
        from truthgpt_serve.cli._infer_inputs import decode
        from truthgpt_serve.server.outputs import OutputCheck

        decoded = decode(model, inputs)
        self.check = OutputCheck(self._task, decoded, type(model).__qualname__)
        self.streams = callable(getattr(model, "stream", None))
        return decoded


@contextlib.contextmanager
def _refused_as_served() -> Iterator[None]:
    """Ends with one line when the service would refuse what the class gave."""
    from truthgpt_serve.errors import ServerError

    try:
        yield
    except ServerError as error:
        raise click.ClickException(f"the service would refuse this: {error.message}") from error


def _answer(config: str, task: str, inputs: dict[str, Any]) -> Any:
    from truthgpt_serve.runner import run_infer

    checked = _Checked(task)
    outputs = run_infer(config, inputs, prepare=checked.prepare)
    with _refused_as_served():
        checked.check.answer(outputs)
    return outputs


def _print_stream(config: str, task: str, inputs: dict[str, Any], answers: TextIO) -> None:
    from truthgpt_serve.runner import run_stream
    from truthgpt_serve.server.infer.values import encode_value

    checked = _Checked(task)
    with contextlib.closing(run_stream(config, inputs, prepare=checked.prepare)) as items:
        for item in items:
            with _refused_as_served():
                (checked.check.piece if checked.streams else checked.check.answer)(item)
            if isinstance(item, dict) and isinstance(item.get("text"), str):
                click.echo(item["text"], file=answers, nl=False)
            else:
                click.echo(encode_value(item, "stream").decode(), file=answers)
            answers.flush()
    with _refused_as_served():
        if checked.streams:
            checked.check.finish()
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
