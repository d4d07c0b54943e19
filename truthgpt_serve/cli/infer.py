"""`truthgpt infer`: one request to the model of a YAML file, without a server.

Knows no family: images and arrays are written as any class may return them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from truthgpt_serve.runner import run_infer, run_stream
from truthgpt_serve.server.values import encode_value


@click.command()
@click.argument("config")
@click.option("--text", help="Inputs {'text': TEXT}, for a text model.")
@click.option("--prompt", help="Inputs {'prompt': PROMPT}, for an image model.")
@click.option(
    "--inputs",
    "inputs_file",
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="A JSON file with the inputs; - reads standard input.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Writes the output there: an image as an image file, anything else as JSON.",
)
@click.option("--stream", is_flag=True, help="Prints each piece as it comes.")
def infer(
    config: str,
    text: str | None,
    prompt: str | None,
    inputs_file: Path | None,
    max_new_tokens: int | None,
    out: Path | None,
    stream: bool,
) -> None:
    """Runs the model of CONFIG, a YAML file, on one request and prints what it returns."""
    if stream and out is not None:
        raise click.UsageError("--stream prints; leave --out out")
    inputs = _inputs(text, prompt, inputs_file)
    if max_new_tokens is not None:
        inputs["max_new_tokens"] = max_new_tokens
    if stream:
        _print_stream(config, inputs)
    else:
        _write(run_infer(config, inputs), out)


def _inputs(text: str | None, prompt: str | None, file: Path | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    if file is not None:
        source = sys.stdin.read() if str(file) == "-" else _read(file)
        try:
            inputs = json.loads(source)
        except ValueError as error:
            raise click.UsageError(f"--inputs {file} is not JSON: {error}") from error
        if not isinstance(inputs, dict):
            raise click.UsageError(f"--inputs {file} must hold a JSON object")
    if text is not None:
        inputs["text"] = text
    if prompt is not None:
        inputs["prompt"] = prompt
    if not inputs:
        raise click.UsageError("give the inputs by --text, --prompt or --inputs")
    return inputs


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--inputs {file} cannot be read: {error}") from error


def _print_stream(config: str, inputs: dict[str, Any]) -> None:
    for item in run_stream(config, inputs):
        if isinstance(item, dict) and isinstance(item.get("text"), str):
            click.echo(item["text"], nl=False)
        else:
            click.echo(encode_value(item, "stream"))
        sys.stdout.flush()
    click.echo()


def _write(outputs: Any, out: Path | None) -> None:
    if out is None:
        click.echo(encode_value(outputs, "infer"))
        return
    image = outputs.get("image") if isinstance(outputs, dict) else None
    try:
        if image is not None and callable(getattr(image, "save", None)):
            image.save(out)
        else:
            out.write_bytes(encode_value(outputs, "infer") + b"\n")
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--out {out} cannot be written: {error}") from error
    click.echo(f"wrote {out}", err=True)
