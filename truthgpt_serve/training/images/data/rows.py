"""The rows of the data set, and their images.

Reads rows as the training core does, but leaves those of the hub where they are: on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from truthgpt_serve.training.data import BadRows, Inventory, Row, read_rows
from truthgpt_serve.training.data.hub import as_files, hub_row, load_hub
from truthgpt_serve.training.data.image_folder import is_file
from truthgpt_serve.training.data.rows import columns_of, text_of
from truthgpt_serve.training.data.sources import is_local
from truthgpt_serve.training.data.splits import TRAIN, VALIDATION, Split
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.image_files import ImageFileError, Pixels, load_image

logger = logging.getLogger(__name__)

_SPLIT = 2
"""Keeps the random numbers of the split apart from those of the order."""


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


class ImageRows:
    """Some rows of a data set, whose images are decoded whenever they are asked for.

    Args:
        rows: The rows of the data set.
        indices: Which of them.
        data: The section `data` of the configuration.
    """

    def __init__(self, rows: Sequence[Row], indices: Sequence[int], data: dict[str, Any]) -> None:
        self._rows = rows
        self._indices = indices
        self._data = data
        self._bad_rows = BadRows(data["on_bad_row"])
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def resolution(self) -> int:
        """Edge of the images in pixels."""
        return int(self._data["resolution"])

    def caption(self, row: int) -> str:
        """Returns the caption of a good row."""
        return text_of(self._row(row).values, self._data["caption_field"])[0]

    def pixels(self, rows: Sequence[int]) -> tuple[Any, Any]:
        """Returns uint8 pixels of shape (rows, 3, edge, edge), and which rows are good.

        Bad rows are black. Raises `TrainingError` for one that is not to be skipped.
        """
        found = [self._try_one(row)[0] for row in rows]
        blank = np.zeros((3, self.resolution, self.resolution), dtype=np.uint8)
        pixels = torch.stack([torch.from_numpy(blank if one is None else one) for one in found])
        # Numbers, for gloo cannot gather truth values.
        return pixels, torch.tensor([int(one is not None) for one in found])

    def get(self, rows: Sequence[int]) -> tuple[Any, list[str]]:
        """Returns uint8 pixels of shape (rows, 3, edge, edge), and captions.

        A bad row that is to be skipped is replaced by the next good one.

        Raises:
            TrainingError: A row is bad and not to be skipped, or all are bad.
        """
        found = [self._next_good(row) for row in rows]
        pixels = torch.stack([torch.from_numpy(pixels) for pixels, _ in found])
        return pixels, [caption for _, caption in found]

    def _row(self, row: int) -> Row:
        return self._rows[self._indices[row]]

    def _next_good(self, row: int) -> tuple[Pixels, str]:
        for offset in range(len(self)):
            pixels, caption = self._try_one((row + offset) % len(self))
            if pixels is not None:
                return pixels, caption
        raise TrainingError("no row of the data set can be used (see the warnings above)")

    def _try_one(self, row: int) -> tuple[Pixels | None, str]:
        found = self._row(row)
        caption, problem = text_of(found.values, self._data["caption_field"])
        problem = found.problem or problem
        field = self._data["image_field"]
        if not problem and field not in found.values:
            problem = f"has no {field!r} column (it has {columns_of(found.values)})"
        if not problem:
            try:
                image = _beside(found, field)
                return load_image(image, self.resolution), caption
            except ImageFileError as error:
                problem = error.message
        if row not in self._reported:
            self._bad_rows.report(found.place, problem)
            logger.warning("skipped %s: %s", found.place, problem)
            self._reported.add(row)
        return None, caption


def _beside(row: Row, field: str) -> Any:
    """Returns a row's image; a relative path is looked up beside the file of the row."""
    image = row.values[field]
    if isinstance(image, str) and not Path(image).is_absolute():
        beside = Path(row.place.rpartition(":")[0]).parent / image
        if is_file(beside):
            return str(beside)
    return image


def load_images(
    cfg: dict[str, Any], sources: list[str] | None = None
) -> tuple[ImageRows, ImageRows | None]:
    """Returns the images to train on and those to evaluate on.

    Args:
        cfg: The configuration.
        sources: Gets the plan's lines on what is read and what is left out.

    Raises:
        TrainingError: There is no such data, a row cannot be read, or there are too few.
    """
    data = cfg["data"]
    if data["dataset"] is None:
        raise TrainingError("data.dataset is missing (name a data set, a folder or a file)")
    sources = [] if sources is None else sources
    rows = _read(TRAIN, data, sources)
    everything = range(len(rows))
    if data["eval_dataset"] is not None:
        others = _read(VALIDATION, data, sources)
        return ImageRows(rows, everything, data), ImageRows(others, range(len(others)), data)
    if data["eval_share"] == 0:
        return ImageRows(rows, everything, data), None
    if len(rows) < 2:
        raise TrainingError(f"data.eval_share needs at least 2 rows, found {len(rows)}")
    shuffled = np.random.default_rng((cfg["seed"], _SPLIT)).permutation(len(rows)).tolist()
    kept = min(max(1, round(data["eval_share"] * len(rows))), len(rows) - 1)
    return ImageRows(rows, sorted(shuffled[kept:]), data), ImageRows(rows, shuffled[:kept], data)


def _read(split: Split, data: dict[str, Any], sources: list[str]) -> Sequence[Row]:
    dataset = data["dataset" if split == TRAIN else "eval_dataset"]
    fields = {"image_field": data["image_field"], "caption_field": data["caption_field"]}
    bad_rows, inventory = BadRows(data["on_bad_row"]), Inventory()
    rows: Sequence[Row]
    if is_local(dataset):
        found = read_rows(
            dataset, bad_rows, split=split, content="images", inventory=inventory, **fields
        )
        rows = list(found)
    else:
        source = load_hub(dataset, data["subset"], split, inventory)
        rows = hub_rows(dataset, source)
    lines = inventory.lines()
    if bad_rows.count:
        shown = "; ".join(bad_rows.shown)
        lines.append(f"skipped  {bad_rows.count:,} bad rows, such as {shown}")
    sources += lines if split == TRAIN else [f"evaluation: {line}" for line in lines]
    if not rows:
        skipped = (
            f", after {bad_rows.count} bad rows: {bad_rows.shown[0]}" if bad_rows.count else ""
        )
        raise TrainingError(f"data {dataset!r} has no rows{skipped}")
    return rows
