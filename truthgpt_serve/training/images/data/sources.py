"""Chooses how a data set is held: encoded in memory where it fits, else decoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from truthgpt_serve.training.images.data.rows import ImageRows, load_images
from truthgpt_serve.training.images.data.samples import MAX_CACHED_BYTES, Source, cache


def open_sources(
    cfg: dict[str, Any], accelerator: Any, encode: Callable[[Any], Any], bytes_per_row: int
) -> tuple[Source, Source | None, bool]:
    """Returns the data to train on, that to evaluate on, and whether both are encoded in memory.

    Args:
        cfg: The configuration.
        accelerator: Of accelerate.
        encode: Maps uint8 pixels on the device to what is kept of them.
        bytes_per_row: What it keeps of one image.

    Raises:
        TrainingError: There is no data, or a row is bad.
    """
    images, held_out = load_images(cfg)
    num_rows = len(images) + (len(held_out) if held_out is not None else 0)
    if num_rows * bytes_per_row > MAX_CACHED_BYTES:
        return images, held_out, False
    size = cfg["training"]["eval_batch_size"]

    def hold(one: ImageRows) -> Source:
        return cache(one, encode, size, accelerator)

    return hold(images), None if held_out is None else hold(held_out), True
