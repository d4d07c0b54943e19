"""Reads a data set of images: which rows there are, and to what size each image is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from truthgpt_serve.training.data import BadRows, Inventory, Row, read_rows
from truthgpt_serve.training.data.find import find_data
from truthgpt_serve.training.data.hub import load_hub
from truthgpt_serve.training.data.image_folder import FILE_FIELD
from truthgpt_serve.training.data.kinds import format_of
from truthgpt_serve.training.data.sources import is_local, local_paths, names_of
from truthgpt_serve.training.data.splits import TRAIN, VALIDATION, Split
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.buckets import (
    Shapes,
    choose_shapes,
    describe_buckets,
    one_shape,
)
from truthgpt_serve.training.images.data.image_files import Size
from truthgpt_serve.training.images.data.inspection import Columns, Spread, alone
from truthgpt_serve.training.images.data.rows import ImageRows, hub_rows

_SPLIT = 2
"""Keeps the random numbers of the split apart from those of the order."""


@dataclass(frozen=True, slots=True)
class _Found:
    """The rows of a data set.

    Attributes:
        rows: All of them.
        good: Those that may be used, as far as it is known before training.
        fulls: Sizes of their images where rows were inspected.
    """

    rows: Sequence[Row]
    good: Sequence[int]
    fulls: Sequence[Size] | None

    def shapes(self, chosen: Sequence[int], data: Mapping[str, Any]) -> Shapes:
        """Returns the shapes of some of the good rows, by their positions among them."""
        if data["aspect_ratio_buckets"] and self.fulls is not None:
            return choose_shapes([self.fulls[one] for one in chosen], data)
        return one_shape(Size(data["resolution"], data["resolution"]), len(chosen))

    def only(self, chosen: Sequence[int], columns: Columns) -> ImageRows:
        """Returns some of the good rows, by their positions among them."""
        indices = [self.good[one] for one in chosen]
        return ImageRows(self.rows, indices, self.shapes(chosen, columns.data), columns)


def columns_of_run(cfg: Mapping[str, Any]) -> Columns:
    """Returns what a run reads of each row."""
    training = cfg["training"]
    inversion = training["textual_inversion"]
    return Columns(
        cfg["data"],
        conditioned=training["component"] == "controlnet",
        placeholder=inversion["placeholder"] if inversion else "",
    )


def load_images(
    cfg: Mapping[str, Any], sources: list[str] | None = None, spread: Spread = alone
) -> tuple[ImageRows, ImageRows | None]:
    """Returns the images to train on and those to evaluate on.

    Args:
        cfg: The configuration.
        sources: Gets the plan's lines on what is read and what is left out.
        spread: Shares the looking at rows among workers.

    Raises:
        TrainingError: There is no such data, a row cannot be read, or there are too few.
    """
    data, columns = cfg["data"], columns_of_run(cfg)
    if data["dataset"] is None:
        raise TrainingError("data.dataset is missing (name a data set, a folder or a file)")
    sources = [] if sources is None else sources
    found = _read(TRAIN, columns, sources, spread)
    everything = range(len(found.good))
    if data["eval_dataset"] is not None:
        others = _read(VALIDATION, columns, sources, spread)
        held_out = others.only(range(len(others.good)), columns)
        return _describe(found, everything, columns, sources), held_out
    if data["eval_share"] == 0:
        return _describe(found, everything, columns, sources), None
    if len(everything) < 2:
        raise TrainingError(f"data.eval_share needs at least 2 rows, found {len(everything)}")
    shuffled = np.random.default_rng((cfg["seed"], _SPLIT)).permutation(len(everything)).tolist()
    kept = min(max(1, round(data["eval_share"] * len(everything))), len(everything) - 1)
    images = _describe(found, sorted(shuffled[kept:]), columns, sources)
    return images, found.only(shuffled[:kept], columns)


def _describe(
    found: _Found, chosen: Sequence[int], columns: Columns, sources: list[str]
) -> ImageRows:
    """Returns the rows to train on, and adds what the plan says of their sizes."""
    images = found.only(chosen, columns)
    if found.fulls is None:
        return images
    fulls = [found.fulls[one] for one in chosen]
    if columns.data["aspect_ratio_buckets"]:
        sources += describe_buckets(images.shapes, fulls, columns.data)
    sizes = [images.shapes.size(row) for row in range(len(images))]
    small = sum(
        full.width < size.width or full.height < size.height
        for full, size in zip(fulls, sizes, strict=True)
    )
    if small:
        sources.append(f"enlarges {small:,} images that are smaller (data.min_edge refuses them)")
    return images


def _read(split: Split, columns: Columns, sources: list[str], spread: Spread) -> _Found:
    data = columns.data
    dataset = data["dataset" if split == TRAIN else "eval_dataset"]
    bad_rows, inventory = BadRows(data["on_bad_row"]), Inventory()
    rows: Sequence[Row]
    names = names_of(dataset)
    if len(names) > 1 or is_local(names[0]):
        rows = _read_local(names, split, data, bad_rows, inventory)
    else:
        rows = hub_rows(names[0], load_hub(names[0], data["subset"], split, inventory))
    found = _inspect(rows, columns, bad_rows, spread)
    lines = inventory.lines()
    if bad_rows.count:
        shown = "; ".join(bad_rows.shown)
        lines.append(f"skipped  {bad_rows.count:,} bad rows, such as {shown}")
    sources += lines if split == TRAIN else [f"evaluation: {line}" for line in lines]
    if not found.good:
        skipped = (
            f", after {bad_rows.count} bad rows: {bad_rows.shown[0]}" if bad_rows.count else ""
        )
        raise TrainingError(f"data {dataset!r} has no rows{skipped}")
    return found


def _read_local(
    names: list[str],
    split: Split,
    data: Mapping[str, Any],
    bad_rows: BadRows,
    inventory: Inventory,
) -> list[Row]:
    caption_field = data["caption_field"]
    if data["caption"] is not None:
        plain = read_plain_folders(names, split, data["image_field"], inventory)
        if plain is not None:
            return plain
        # Any column that is there: the captions come from the configuration.
        caption_field = FILE_FIELD
    fields = {"image_field": data["image_field"], "caption_field": caption_field}
    found = read_rows(names, bad_rows, split=split, content="images", inventory=inventory, **fields)
    return list(found)


def read_plain_folders(
    names: list[str], split: Split, image_field: str, inventory: Inventory
) -> list[Row] | None:
    """Returns the rows of folders of images without captions, or None where one is none.

    Raises:
        TrainingError: There is no such folder, or it cannot be read.
    """
    if not all(is_local(name) for name in names):
        return None
    roots = [path for name in names for path in local_paths(name, split)]
    for root in roots:
        found = find_data(root, split, "images", Inventory())
        if not found.is_images or any(format_of(file) != ".txt" for file in found.rows):
            return None
    rows = []
    for root in roots:
        found = find_data(root, split, "images", inventory)
        inventory.read(found.name(image) for image in found.images)
        for file in found.rows:
            inventory.leave_out(found.name(file), "the captions come from data.caption")
        rows += [Row({image_field: str(image)}, str(image)) for image in found.images]
    return rows


def _inspect(rows: Sequence[Row], columns: Columns, bad_rows: BadRows, spread: Spread) -> _Found:
    if not columns.needs_inspection:
        return _Found(rows, range(len(rows)), None)
    results = spread(len(rows), lambda index: columns.inspect(rows[index]))
    good, fulls = [], []
    for index, result in enumerate(results):
        if isinstance(result, str):
            bad_rows.report(rows[index].place, result)
        else:
            good.append(index)
            fulls.append(result)
    return _Found(rows, good, fulls)
