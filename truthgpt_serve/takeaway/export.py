"""Writes a result in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.output import check_output
from truthgpt_serve.takeaway.result import find_result
from truthgpt_serve.takeaway.whole import MAX_SHARD, MISSING, write_card_of, write_whole
from truthgpt_serve.training.loading import load_module

_TEXT_ONLY = {
    "onnx": "truthgpt_serve.takeaway.text.onnx_graph",
    "gguf": "truthgpt_serve.takeaway.text.gguf_file",
}
FORMATS = ("safetensors", *_TEXT_ONLY)


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
        conversion: Any = load_module(_TEXT_ONLY[to], TakeawayError, **MISSING)
        lines = conversion.export(result, target, dtype=dtype)
    write_card_of(result, target)
    return target, lines
