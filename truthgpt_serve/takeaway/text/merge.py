"""Merges an adapter into its text model."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.takeaway.output import check_room, writing
from truthgpt_serve.takeaway.result import Result
from truthgpt_serve.takeaway.text.models import (
    load_merged,
    load_tokenizer,
    write_model,
)
from truthgpt_serve.training.text.quantized import weight_bytes


def write_whole(result: Result, out: Path, *, dtype: str | None, max_shard: str) -> list[str]:
    """Writes a result as an ordinary folder of a whole model.

    Args:
        result: An adapter, which is merged, or a whole model.
        out: The folder, see `check_output`.
        dtype: Number format of the weights; None: as the base's.
        max_shard: Largest file of weights, such as `5GB`.

    Returns:
        Lines on what was done.

    Raises:
        TakeawayError: It cannot be loaded, merged or written.
    """
    tokenizer = load_tokenizer(result)
    model, difference = load_merged(result, dtype)
    check_room(out, weight_bytes(model))
    with writing(out) as folder:
        write_model(model, tokenizer, folder, max_shard, result)
    lines = [] if tokenizer is not None else ["note: there is no tokenizer beside the weights"]
    if difference is not None:
        return [f"largest difference of a logit to base and adapter: {difference:.2g}", *lines]
    return lines
