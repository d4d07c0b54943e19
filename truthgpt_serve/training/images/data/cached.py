"""The encoded images of a data set, in memory: computed once, each worker a share of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.buckets import Shapes
from truthgpt_serve.training.images.data.image_files import CENTER, Cut, Size
from truthgpt_serve.training.images.data.rows import Batch, ImageRows

logger = logging.getLogger(__name__)

FLIPPED = Cut(flip=True)


class Cached:
    """A data set whose encoded images are in memory; see `Source`.

    Args:
        shapes: To what size each row was cut.
        captions: Of each row.
        tensors: For each size what is kept of its rows, as they are, then mirrored if they may be.
    """

    def __init__(
        self, shapes: Shapes, captions: list[tuple[str, ...]], tensors: list[list[Batch]]
    ) -> None:
        self.shapes = shapes
        self._captions = captions
        self._tensors = tensors
        self._slots = np.empty(len(captions), dtype=np.intp)
        for rows in shapes.rows():
            self._slots[rows] = np.arange(len(rows))

    def __len__(self) -> int:
        return len(self._captions)

    def get(self, rows: Sequence[int], cuts: Sequence[Cut], size: Size | None = None) -> Batch:
        """Returns the encoded images of rows; `size` is theirs."""
        variants = self._tensors[int(self.shapes.of_row[rows[0]])]
        chosen = [
            (variants[int(cut.flip)], int(self._slots[row]))
            for row, cut in zip(rows, cuts, strict=True)
        ]
        batch: Batch = {
            name: torch.stack([variant[name][slot] for variant, slot in chosen])
            for name in variants[0]
        }
        return batch | {"captions": [self._captions[row] for row in rows]}


def cache(
    images: ImageRows,
    encode: Callable[[Any], Any],
    batch_size: int,
    accelerator: Any,
    *,
    flips: bool,
) -> Cached:
    """Encodes all images, each worker a share; every worker gets all of them.

    Args:
        images: The data set; bad rows are left out if it skips them.
        encode: Maps uint8 pixels on the accelerator's device to what is kept.
        batch_size: Images that are encoded at once.
        accelerator: Of accelerate.
        flips: Whether the mirrored images are kept too.

    Raises:
        TrainingError: A row is bad and not to be skipped, or all are bad.
    """
    cuts = (CENTER, FLIPPED) if flips else (CENTER,)
    kept: list[int] = []
    tensors: list[list[Batch]] = []
    for rows in images.shapes.rows():
        variants = [
            _encode(images, rows.tolist(), cut, encode, batch_size, accelerator) for cut in cuts
        ]
        good = torch.stack([flags for _, flags in variants]).all(dim=0).nonzero().flatten()
        if len(good) > 0:
            kept += rows[good.numpy()].tolist()
            tensors.append(
                [{name: one[good] for name, one in batch.items()} for batch, _ in variants]
            )
    if not kept:
        raise TrainingError("no row of the data set can be used (see the warnings above)")
    if len(kept) < len(images):
        left_out = len(images) - len(kept)
        logger.warning("%d of %d rows are bad and left out", left_out, len(images))
    kept.sort()
    return Cached(images.shapes.only(kept), [images.captions(row) for row in kept], tensors)


def _encode(
    images: ImageRows,
    rows: Sequence[int],
    cut: Cut,
    encode: Callable[[Any], Any],
    batch_size: int,
    accelerator: Any,
) -> tuple[Batch, Any]:
    """Returns what is kept of rows of one size, and which of them are good."""
    found: dict[str, list[Any]] = {}
    flags = []
    for start in range(0, len(rows), batch_size * accelerator.num_processes):
        first = start + accelerator.process_index * batch_size
        # Past the end the last row is done again, so that all workers gather equally much.
        part = [rows[min(first + offset, len(rows) - 1)] for offset in range(batch_size)]
        batch, good = images.try_get(part, cut)
        del batch["captions"]
        batch["examples"] = encode(batch["examples"].to(accelerator.device))
        for name, tensor in batch.items():
            found.setdefault(name, []).append(_gather(tensor.to(accelerator.device), accelerator))
        flags.append(_gather(good.to(accelerator.device), accelerator))
    count = len(rows)
    return {name: torch.cat(one)[:count] for name, one in found.items()}, torch.cat(flags)[:count]


def _gather(tensor: Any, accelerator: Any) -> Any:
    return accelerator.gather(tensor).cpu()
