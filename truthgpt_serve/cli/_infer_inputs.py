"""The inputs of `truthgpt infer`: options, a JSON file, and the images and recordings they name.

Files are read here only, from the user's own machine: over HTTP a path is a text.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from truthgpt_serve.cli._service.utf8 import check_text
from truthgpt_serve.config.paths import expand
from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.audio.decode import bounds_of, decode_audio
from truthgpt_serve.server.infer.values import ARRAY_KEYS, IMAGE_KEYS, decode_value

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
RECORDINGS = (".wav", ".flac", ".ogg", ".mp3")
ARRAYS = (".npy",)
FILE_KEYS = frozenset({"path"})
"""Keys of a value that stands for a file: `{"path": "speech.wav"}`."""

OPTIONS = {
    "text-generation": "--text TEXT",
    "embedding": "--text TEXT",
    "image-generation": "--prompt PROMPT",
    "tensor": '--inputs FILE, a JSON file such as {"x": [[1, 2]]}',
    "custom": "--text, --image, --audio or --inputs FILE, as the model takes it",
}
"""How the inputs of each task are usually given."""


def read_inputs(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file; `-` is standard input. Raises click.UsageError."""
    try:
        source = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--inputs {file} cannot be read: {error}") from error
    check_text(source, f"--inputs {file}")
    try:
        inputs = json.loads(source)
    except ValueError as error:
        raise click.UsageError(f"--inputs {file} is not JSON: {error}") from error
    if not isinstance(inputs, dict):
        raise click.UsageError(f"--inputs {file} must hold a JSON object")
    return inputs


def check_given(inputs: dict[str, Any], task: str) -> None:
    """Raises click.UsageError when there are no inputs, or not the one that the task needs."""
    how = OPTIONS.get(task, OPTIONS["custom"])
    if not inputs:
        raise click.UsageError(f"give the inputs of a model with task {task}: {how}")
    needed = {"text-generation": ("text",), "image-generation": ("prompt", "image")}.get(task)
    if needed is not None and not any(name in inputs for name in needed):
        given = ", ".join(inputs)
        raise click.UsageError(
            f"a model with task {task} needs `{needed[0]}`, found {given}: give {how}"
        )


def decode(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Returns the inputs with files, images and arrays made into objects.

    Args:
        model: The loaded model; it says at what rate it hears.
        inputs: As they were given.

    Raises:
        RequestError: A file cannot be read, or an image or array is damaged.
    """
    return {name: _decode(model, value, f"inputs.{name}") for name, value in inputs.items()}


def _decode(model: Any, value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_decode(model, item, f"{place}[{at}]") for at, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if value.keys() == FILE_KEYS and isinstance(value["path"], str):
        return _read_file(model, value, place)
    if value.keys() in (ARRAY_KEYS, IMAGE_KEYS):
        _need("numpy" if value.keys() == ARRAY_KEYS else "PIL.Image", place)
        return decode_value(value, place)
    return {name: _decode(model, item, f"{place}.{name}") for name, item in value.items()}


def _read_file(model: Any, value: dict[str, Any], place: str) -> Any:
    """Returns what the file holds, by its ending; a value with another ending stays as it is."""
    path = expand(value["path"])
    ending = path.suffix.lower()
    if ending not in (*IMAGES, *RECORDINGS, *ARRAYS):
        return value
    try:
        if ending in RECORDINGS:
            return decode_audio(path.read_bytes(), *bounds_of(model))
        if ending in ARRAYS:
            return _need("numpy", place).load(path, allow_pickle=False)
        image = _need("PIL.Image", place).open(path)
        image.load()
        return image
    except (OSError, ValueError) as error:
        raise RequestError(f"`{place}`: {path} cannot be read: {error}", param=place) from error


def _need(package: str, place: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RequestError(
            f"`{place}` needs the package {package.partition('.')[0]}, which is not installed",
            param=place,
        ) from error
