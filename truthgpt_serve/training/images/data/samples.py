"""Batches of images or of their latents, read ahead.

Where the encoded images of the whole data set fit into `MAX_CACHED_BYTES`, they are computed once,
each worker a share of them, and kept in memory. Else batches are decoded one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.rows import ImageRows
from truthgpt_serve.training.images.data.sampling_order import Draws

logger = logging.getLogger(__name__)

MAX_CACHED_BYTES = 2 * 2**30
"""Memory of each worker that the encoded images of one data set may take."""
PREFETCHED_BATCHES = 2
"""Of each loader process."""
LOADER_TIMEOUT_S = 600
"""A loader process that gives no batch for so long is taken for dead."""

Batch = dict[str, Any]


class Source(Protocol):
    """The examples of a data set, by row."""

    def __len__(self) -> int:
        """How many there are."""

    def get(self, rows: Sequence[int]) -> tuple[Any, list[str]]:
        """Returns the examples as one tensor, first dimension the rows, and their captions."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A data set whose encoded images are in memory.

    Attributes:
        encoded: First dimension the rows.
        captions: One for each row.
    """

    encoded: Any
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def get(self, rows: Sequence[int]) -> tuple[Any, list[str]]:
        """Returns the encoded images and captions of the rows."""
        return self.encoded[torch.as_tensor(rows)], [self.captions[row] for row in rows]


def cache(
    images: ImageRows, encode: Callable[[Any], Any], batch_size: int, accelerator: Any
) -> Cached:
    """Encodes all images, each worker a share; every worker gets all of them.

    Args:
        images: The data set; bad rows are left out if it skips them.
        encode: Maps uint8 pixels on the accelerator's device to what is kept.
        batch_size: Images that are encoded at once.
        accelerator: Of accelerate.

    Raises:
        TrainingError: A row is bad and not to be skipped, or all are bad.
    """
    num_rows, num_workers = len(images), accelerator.num_processes
    encoded, good = [], []
    for start in range(0, num_rows, batch_size * num_workers):
        first = start + accelerator.process_index * batch_size
        # Past the end the last row is done again, so that all workers gather equally much.
        rows = [min(first + offset, num_rows - 1) for offset in range(batch_size)]
        pixels, flags = images.pixels(rows)
        encoded.append(_gather(encode(pixels.to(accelerator.device)), accelerator))
        good.append(_gather(flags.to(accelerator.device), accelerator))
    kept = torch.cat(good)[:num_rows].nonzero().flatten()
    if len(kept) == 0:
        raise TrainingError("no row of the data set can be used (see the warnings above)")
    if len(kept) < num_rows:
        logger.warning("%d of %d rows are bad and left out", num_rows - len(kept), num_rows)
    captions = [images.caption(row) for row in kept.tolist()]
    return Cached(torch.cat(encoded)[:num_rows][kept], captions)


def _gather(tensor: Any, accelerator: Any) -> Any:
    return accelerator.gather(tensor).cpu()


class Samples(Dataset):  # type: ignore[misc] # torch counts as Any here
    """What a loader reads: batches of examples with their random numbers.

    Args:
        source: The data set.
        row_of: The row at a position.
        draws_of: The random numbers at a position.
        caption_dropout: Share of captions that are dropped.
    """

    def __init__(
        self,
        source: Source,
        row_of: Callable[[int], int],
        draws_of: Callable[[int], Draws],
        caption_dropout: float = 0.0,
    ) -> None:
        self._source = source
        self._row_of = row_of
        self._draws_of = draws_of
        self._caption_dropout = caption_dropout

    def __getitems__(self, positions: list[int]) -> Batch:
        """Returns a batch.

        Its `examples` and `captions` are the source's, a dropped caption being None; `noise` and
        `posterior` are as in `Draws`, and `levels` of shape (batch,).
        """
        examples, captions = self._source.get([self._row_of(position) for position in positions])
        draws = [self._draws_of(position) for position in positions]
        return {
            "examples": examples,
            "noise": torch.stack([torch.from_numpy(one.noise) for one in draws]),
            "posterior": torch.stack([torch.from_numpy(one.posterior) for one in draws]),
            "levels": torch.tensor([one.level for one in draws], dtype=torch.float32),
            "captions": [
                None if one.drop < self._caption_dropout else caption
                for one, caption in zip(draws, captions, strict=True)
            ],
        }


def _keep(batch: Batch) -> Batch:
    return batch


def open_loader(
    samples: Samples, batches: Iterable[list[int]], num_loader_workers: int, device: Any
) -> Any:
    """Returns a loader of the batches at the given positions, read ahead by its processes."""
    more: dict[str, Any] = {}
    if num_loader_workers:
        more = {
            "num_workers": num_loader_workers,
            "prefetch_factor": PREFETCHED_BATCHES,
            "timeout": LOADER_TIMEOUT_S,
        }
    return DataLoader(
        samples,
        batch_sampler=batches,
        collate_fn=_keep,
        pin_memory=device.type == "cuda",
        # Its own: opening a loader would else draw from the generator that the model draws from.
        generator=torch.Generator(),
        **more,
    )


def to_device(batch: Batch, device: Any) -> Batch:
    """Returns the batch with its tensors on the device; copies from pinned memory overlap."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
