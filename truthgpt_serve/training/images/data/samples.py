"""Batches of images or of their latents, read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from truthgpt_serve.training.images.data.buckets import Shapes
from truthgpt_serve.training.images.data.draws import Draws
from truthgpt_serve.training.images.data.image_files import Cut, Size
from truthgpt_serve.training.images.data.rows import Batch

PREFETCHED_BATCHES = 2
"""Of each loader process."""
LOADER_TIMEOUT_S = 600
"""A loader process that gives no batch for so long is taken for dead."""


class Source(Protocol):
    """The examples of a data set, by row.

    Attributes:
        shapes: To what size each row is cut.
    """

    shapes: Shapes

    def __len__(self) -> int:
        """How many there are."""

    def get(self, rows: Sequence[int], cuts: Sequence[Cut], size: Size | None = None) -> Batch:
        """Returns examples of one size.

        Args:
            rows: Which; they are of one size.
            cuts: How the image of each is cut.
            size: Another size to cut them to; only of images that are not cached.

        Returns:
            Tensors whose first dimension is the rows: `examples`, pixels or what is kept of them;
            `time_ids`, float32 of shape (rows, 6), see `Loaded.time_ids`; of a ControlNet's data
            `conditioning`, uint8 pixels. Besides, as a list, the `captions` of each row.
        """


Draw = Callable[[int, Size], Draws]
"""Returns the random numbers at a position, for an image of this size."""


class Samples(Dataset):  # type: ignore[misc] # torch counts as Any here
    """What a loader reads: batches of examples with their random numbers.

    Args:
        source: The data set.
        row_of: The row at a position.
        draws_of: The random numbers at a position.
        caption_dropout: Share of captions that are dropped.
        beside: What is read beside each batch: images of the class, for prior preservation.
    """

    def __init__(
        self,
        source: Source,
        row_of: Callable[[int], int],
        draws_of: Draw,
        caption_dropout: float = 0.0,
        beside: Samples | None = None,
    ) -> None:
        self._source = source
        self._row_of = row_of
        self._draws_of = draws_of
        self._caption_dropout = caption_dropout
        self._beside = beside

    def __getitems__(self, positions: list[int]) -> Batch:
        """Returns the batch at some positions, whose rows are of one size.

        It has what `Source.get` returns, one caption of each row, a dropped one being None; `noise`
        and `posterior` are as in `Draws`, and `levels` of shape (batch,). `prior` is such a batch
        of images of the class, where there are any.
        """
        size = self._source.shapes.size(self._row_of(positions[0]))
        batch = self.read(positions, size)
        if self._beside is not None:
            batch["prior"] = self._beside.read(positions, size)
        return batch

    def read(self, positions: list[int], size: Size) -> Batch:
        """Returns the batch at some positions, cut to a size."""
        rows = [self._row_of(position) for position in positions]
        draws = [self._draws_of(position, size) for position in positions]
        batch = self._source.get(rows, [one.cut for one in draws], size)
        batch["captions"] = [
            None if one.drop < self._caption_dropout else captions[int(one.choice * len(captions))]
            for one, captions in zip(draws, batch["captions"], strict=True)
        ]
        return batch | {
            "noise": torch.stack([torch.from_numpy(one.noise) for one in draws]),
            "posterior": torch.stack([torch.from_numpy(one.posterior) for one in draws]),
            "levels": torch.tensor([one.level for one in draws], dtype=torch.float32),
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
    return {name: _to_device(value, device) for name, value in batch.items()}


def _to_device(value: Any, device: Any) -> Any:
    if isinstance(value, dict):
        return to_device(value, device)
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
