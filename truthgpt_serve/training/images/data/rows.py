"""The rows of the data set, and their images.

Reads rows as the training core does, but leaves those of the hub where they are: on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch

from truthgpt_serve.training.data import BadRows, Row
from truthgpt_serve.training.data.hub import as_files, hub_row
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.buckets import Shapes
from truthgpt_serve.training.images.data.image_files import (
    CENTER,
    Cut,
    ImageFileError,
    Loaded,
    Size,
    load_image,
)
from truthgpt_serve.training.images.data.inspection import Columns

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HubRows(Sequence[Row]):
    """Rows of a `datasets.Dataset`, read when they are asked for.

    Attributes:
        name: Of the data set.
        source: The data set.
    """

    name: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return hub_row(self.name, self.source, index)


def hub_rows(name: str, source: Any) -> HubRows:
    """Returns the rows of a `datasets.Dataset`, whose images stay files.

    They are decoded with all others here, so that a damaged one is found with its row.
    """
    return HubRows(name, as_files(source))


@dataclass(frozen=True, slots=True)
class _Example:
    image: Loaded
    conditioning: Loaded | None
    captions: tuple[str, ...]


class ImageRows:
    """Some rows of a data set, whose images are decoded whenever they are asked for.

    Args:
        rows: The rows of the data set.
        indices: Which of them.
        shapes: To what size each of these is cut.
        columns: What is read of a row.

    Attributes:
        shapes: To what size each row is cut.
    """

    def __init__(
        self, rows: Sequence[Row], indices: Sequence[int], shapes: Shapes, columns: Columns
    ) -> None:
        self._rows = rows
        self._indices = indices
        self.shapes = shapes
        self._columns = columns
        self._bad_rows = BadRows(columns.data["on_bad_row"])
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    def captions(self, row: int) -> tuple[str, ...]:
        """Returns the captions of a good row, one of which is read each time."""
        return self._columns.captions(self._row(row))[0]

    def place(self, row: int) -> str:
        """Returns where a row stands."""
        return self._row(row).place

    def try_get(self, rows: Sequence[int], cut: Cut) -> tuple[Batch, Any]:
        """Returns the examples of rows of one size as `get` does, and which rows are good.

        Bad rows are black. Raises `TrainingError` for one that is not to be skipped.
        """
        size = self.shapes.size(rows[0])
        found = [self._try_one(row, size, cut) for row in rows]
        blank = Loaded(np.zeros((3, size.height, size.width), dtype=np.uint8), size, (0,) * 6)
        black = _Example(blank, blank if self._columns.conditioned else None, ())
        # Numbers, for gloo cannot gather truth values.
        flags = torch.tensor([int(one is not None) for one in found])
        return _stack([black if one is None else one for one in found]), flags

    def get(self, rows: Sequence[int], cuts: Sequence[Cut], size: Size | None = None) -> Batch:
        """Returns the examples of rows; see `Source`.

        A bad row that is to be skipped is replaced by the next good one of its size.

        Raises:
            TrainingError: A row is bad and not to be skipped, or all are bad.
        """
        size = size or self.shapes.size(rows[0])
        return _stack(
            [self._next_good(row, size, cut) for row, cut in zip(rows, cuts, strict=True)]
        )

    def _row(self, row: int) -> Row:
        return self._rows[self._indices[row]]

    def _next_good(self, row: int, size: Size, cut: Cut) -> _Example:
        bucket = self.shapes.of_row[row]
        for offset in range(len(self)):
            other = (row + offset) % len(self)
            if self.shapes.of_row[other] != bucket:
                continue
            if (found := self._try_one(other, size, cut)) is not None:
                return found
        raise TrainingError("no row of the data set can be used (see the warnings above)")

    def _try_one(self, row: int, size: Size, cut: Cut = CENTER) -> _Example | None:
        found = self._row(row)
        captions, problem = self._columns.captions(found)
        images: list[Any] = []
        if not problem:
            images, problem = self._columns.images(found)
        if not problem:
            try:
                loaded = [load_image(image, size, cut) for image in images]
                problem = self._columns.size_problem([one.full for one in loaded])
                if not problem:
                    return _Example(loaded[0], loaded[1] if len(loaded) > 1 else None, captions)
            except ImageFileError as error:
                problem = error.message
        if row not in self._reported:
            self._bad_rows.report(found.place, problem)
            logger.warning("skipped %s: %s", found.place, problem)
            self._reported.add(row)
        return None


def _stack(found: Sequence[_Example]) -> Batch:
    batch = {
        "examples": torch.stack([torch.from_numpy(one.image.pixels) for one in found]),
        "time_ids": torch.tensor([one.image.time_ids for one in found], dtype=torch.float32),
        "captions": [one.captions for one in found],
    }
    hints = [one.conditioning for one in found if one.conditioning is not None]
    if hints:
        batch["conditioning"] = torch.stack([torch.from_numpy(one.pixels) for one in hints])
    return batch
