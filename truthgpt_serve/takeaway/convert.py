"""Merges and exports results: finds, checks, and calls the conversion of the kind.

Imports the libraries that convert only when it calls them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_output
from truthgpt_serve.takeaway.result import Result, find_result
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loading import load_module
from truthgpt_serve.training.report import write_card

DTYPES = ("float32", "float16", "bfloat16")
MAX_SHARD = "5GB"
_TEXT_ONLY = {
    "onnx": "truthgpt_serve.takeaway.text.onnx_graph",
    "gguf": "truthgpt_serve.takeaway.text.gguf_file",
}
FORMATS = ("safetensors", *_TEXT_ONLY)
_WHOLE = {False: "truthgpt_serve.takeaway.text.merge", True: "truthgpt_serve.takeaway.images.merge"}


def merge(
    given: Path,
    *,
    out: Path | None = None,
    base: str | None = None,
    dtype: str | None = None,
    max_shard: str = MAX_SHARD,
    force: bool = False,
) -> tuple[Path, list[str]]:
    """Merges the adapter of a run, or any adapter, into its base.

    Args:
        given: See `find_result`.
        out: The new folder; by default `merged` in the run's folder, else beside the adapter's.
        base: In place of the base that the run or the adapter names.
        dtype: One of `DTYPES`; by default the base's.
        max_shard: Largest file of weights.
        force: Whether a folder that exists is replaced.

    Returns:
        The new folder, and lines on what was done.

    Raises:
        TakeawayError: It cannot be done; nothing was written.
    """
    result = find_result(given, base)
    if not result.is_adapter:
        fix = "serve or export it as it is"
        raise TakeawayError(f"{result.folder}: is a whole model, there is nothing to merge ({fix})")
    target = check_output(out or result.beside("merged"), force=force, source=result.folder)
    lines = write_whole(result, target, dtype=dtype, max_shard=max_shard)
    _write_card(result, target)
    return target, lines


def export(
    given: Path,
    to: str,
    *,
    out: Path | None = None,
    base: str | None = None,
    dtype: str | None = None,
    max_shard: str = MAX_SHARD,
    force: bool = False,
) -> tuple[Path, list[str]]:
    """Writes a result in another format; an adapter is merged on the way.

    Args:
        given: See `find_result`.
        to: One of `FORMATS`.
        out: The new folder; by default the format's name in the run's folder, else beside.
        base: As in `merge`.
        dtype: One of `DTYPES`; by default the base's, for `onnx` float32.
        max_shard: Largest file of weights, for `safetensors`.
        force: As in `merge`.

    Returns:
        The new folder, and lines on what was done.

    Raises:
        TakeawayError: It cannot be done; nothing was written.
    """
    result = find_result(given, base)
    if result.is_image and to in _TEXT_ONLY:
        fix = "write --to safetensors: the folder of a whole pipeline"
        raise TakeawayError(f"{given}: an image pipeline is not exported to {to} ({fix})")
    target = check_output(out or result.beside(to), force=force, source=result.folder)
    if to not in _TEXT_ONLY:
        lines = write_whole(result, target, dtype=dtype, max_shard=max_shard)
    else:
        lines = _load(_TEXT_ONLY[to]).export(result, target, dtype=dtype)
    _write_card(result, target)
    return target, lines


def _write_card(result: Result, folder: Path) -> None:
    """Writes the model card of a run's result, which is good without one, too."""
    if result.run is not None:
        with suppress(OSError, TrainingError):
            write_card(result.run, folder, adapter=False)


def write_whole(result: Result, out: Path, *, dtype: str | None, max_shard: str) -> list[str]:
    """Writes a result as a whole model's folder; returns lines on what was done.

    Raises:
        TakeawayError: It cannot be done.
    """
    module = _load(_WHOLE[result.is_image])
    lines: list[str] = module.write_whole(result, out, dtype=dtype, max_shard=max_shard)
    return lines


def _load(name: str) -> Any:
    return load_module(name, TakeawayError, what="this", extras="train,export")
