"""A data set of the Hugging Face hub, by its name.

The one reader that needs `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from truthgpt_serve.training.data.inventory import Inventory, shown
from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.data.splits import TEST, TRAIN, VALIDATION, WORDS, Split
from truthgpt_serve.training.errors import TrainingError

BATCH_ROWS = 1000
"""Rows that are decoded at a time."""


def read_hub(name: str, subset: str | None, split: Split, inventory: Inventory) -> Iterator[Row]:
    """Yields the rows of a split.

    Raises:
        TrainingError: The hub has no such data set, or cannot be reached.
    """
    source = load_hub(name, subset, split, inventory)
    for start in range(0, len(source), BATCH_ROWS):
        try:
            columns = source[start : start + BATCH_ROWS]
        except Exception:  # one of them cannot be decoded
            stop = min(start + BATCH_ROWS, len(source))
            yield from (hub_row(name, source, index) for index in range(start, stop))
            continue
        for offset, values in enumerate(zip(*columns.values(), strict=True)):
            place = f"{name}: row {start + offset + 1}"
            yield Row(dict(zip(columns, values, strict=True)), place, fills_nulls=True)


def hub_row(name: str, source: Any, index: int) -> Row:
    """Returns one row of a data set, or that it cannot be decoded."""
    place = f"{name}: row {index + 1}"
    try:
        return Row(source[index], place, fills_nulls=True)
    except Exception as error:  # whatever decodes a column raises errors of its own
        return Row({}, place, f"cannot be decoded: {type(error).__name__}: {error}")


def load_hub(name: str, subset: str | None, split: Split, inventory: Inventory) -> Any:
    """Returns the `datasets.Dataset` of a split, downloaded once and then cached.

    Args:
        name: Of the data set.
        subset: `data.subset`.
        split: `train`, or `validation` for the one to evaluate on.
        inventory: Is told which splits are left out.

    Raises:
        TrainingError: See `read_hub`.
    """
    import datasets

    try:
        found = datasets.load_dataset(name, subset)
    except Exception as error:  # the library raises a class of its own for each way to fail
        key = "data.dataset" if split == TRAIN else "data.eval_dataset"
        shown_name = name if subset is None else f"{name} ({subset})"
        fix = f"correct {key}; a local folder or file needs its path"
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise TrainingError(
            f"{key} {shown(shown_name)!r} cannot be read: {type(error).__name__}: "
            f"{shown(message)} ({fix})"
        ) from error
    chosen = choose_hub_split(name, list(found), split)
    inventory.read([f"{name}, split {chosen}"])
    for other in found:
        if other != chosen:
            inventory.leave_out(f"{name}, split {other}", "another split")
    return as_files(found[chosen])


def as_files(source: Any) -> Any:
    """Returns a data set whose images and sounds stay files: only what is used is decoded."""
    import datasets

    media = (datasets.Image, datasets.Audio, datasets.Video)
    for name, feature in source.features.items():
        if isinstance(feature, media):
            source = source.cast_column(name, type(feature)(decode=False))
    return source


def choose_hub_split(name: str, splits: list[str], wanted: Split) -> str:
    """Returns which split of a data set to read.

    Raises:
        TrainingError: There is none of the wanted kind.
    """
    kinds = {split: WORDS.get(split.lower()) for split in splits}
    for kind in (TRAIN,) if wanted == TRAIN else (VALIDATION, TEST):
        for split in splits:
            if kinds[split] == kind:
                return split
    if wanted != TRAIN and len(splits) == 1:
        return splits[0]
    message = f"{shown(name)}: has no split to {'train' if wanted == TRAIN else 'evaluate'} on"
    raise TrainingError(f"{message}: it has {', '.join(splits)} (name another data set)")
