"""Writes a result as the folder of a whole model: calls the conversion of its kind.

Imports the libraries that convert only when it calls them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.result import Result
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loading import load_module
from truthgpt_serve.training.report import write_card

DTYPES = ("float32", "float16", "bfloat16")
MAX_SHARD = "5GB"
MISSING = {"what": "this", "extras": "train,export"}
"""What `load_module` says of a library that is not there."""
_WHOLE = {False: "truthgpt_serve.takeaway.text.merge", True: "truthgpt_serve.takeaway.images.merge"}


def write_whole(result: Result, out: Path, *, dtype: str | None, max_shard: str) -> list[str]:
    """Writes a result as a whole model's folder; returns lines on what was done.

    Raises:
        TakeawayError: It cannot be done.
    """
    module: Any = load_module(_WHOLE[result.is_image], TakeawayError, **MISSING)
    lines: list[str] = module.write_whole(result, out, dtype=dtype, max_shard=max_shard)
    return lines


def write_card_of(result: Result, folder: Path) -> None:
    """Writes the model card of a run's result, which is good without one, too."""
    if result.run is not None:
        with suppress(OSError, TrainingError):
            write_card(result.run, folder, adapter=False)
