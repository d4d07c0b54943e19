"""From what `data.dataset` names to rows: a hub name, a file, a folder, a pattern, or several.

The caller interprets the columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import iglob
from itertools import islice
from pathlib import Path

from truthgpt_serve.config.paths import expand, is_pattern, must_be_local
from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.find import Content, find_data
from truthgpt_serve.training.data.hub import read_hub
from truthgpt_serve.training.data.image_folder import read_image_folder
from truthgpt_serve.training.data.inventory import Inventory, shown
from truthgpt_serve.training.data.kinds import format_of
from truthgpt_serve.training.data.readers import read_file
from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.data.splits import TRAIN, Split
from truthgpt_serve.training.data.walk import MAX_FILES, drop_packed, drop_twins
from truthgpt_serve.training.errors import TrainingError

Dataset = str | Sequence[str]
"""`data.dataset` or `data.eval_dataset`."""


def read_rows(
    dataset: Dataset,
    bad_rows: BadRows,
    *,
    subset: str | None = None,
    text_field: str = "text",
    image_field: str = "image",
    caption_field: str = "text",
    split: Split = TRAIN,
    content: Content = "any",
    inventory: Inventory | None = None,
) -> Iterator[Row]:
    """Yields the rows of a data set in a fixed order: as listed, files by name, then lines.

    Args:
        dataset: `data.dataset` or `data.eval_dataset`, local paths absolute.
        bad_rows: Takes the rows that cannot be read at all.
        subset: `data.subset`, of a hub data set.
        text_field: Column that a line of a `.txt` file becomes.
        image_field: Column of the path of an image, for a folder of images.
        caption_field: Column of its caption.
        split: What the rows are for: `train` or `validation`.
        content: What they are to hold: `text` or `images`; `any` goes by what a folder holds.
        inventory: Is told what is read and what is left out.

    Raises:
        TrainingError: There is no such data, it cannot be read, or a bad row stops the run.
    """
    inventory = inventory or Inventory()
    for name in names_of(dataset):
        if not is_local(name):
            yield from read_hub(name, subset, split, inventory)
            continue
        for path in _without_copies(local_paths(name, split), inventory):
            found = find_data(path, split, content, inventory)
            if found.is_images:
                yield from read_image_folder(found, image_field, caption_field, bad_rows, inventory)
                continue
            inventory.read(found.name(file) for file in found.rows)
            for file in found.rows:
                yield from read_file(file, text_field, bad_rows)


def _without_copies(paths: list[Path], inventory: Inventory) -> list[Path]:
    """Returns the files of a pattern without those that hold what another one holds."""
    if len(paths) < 2:
        return paths
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return drop_twins(drop_packed(paths, root, inventory), root, inventory)


def names_of(dataset: Dataset | None) -> list[str]:
    """Returns what a data set names, one by one."""
    return [dataset] if isinstance(dataset, str) else list(dataset or ())


def is_local(name: str) -> bool:
    """Returns whether a name is a local file, folder or pattern rather than one of the hub."""
    path = expand(name)
    looks_local = path.is_absolute() or must_be_local(name) or is_pattern(name)
    return looks_local or bool(format_of(path)) or _exists(path)


def local_paths(name: str, split: Split = TRAIN) -> list[Path]:
    """Returns the path of a local file or folder, or the files of a pattern, sorted.

    Raises:
        TrainingError: There is none, or it cannot be looked at.
    """
    path = expand(name)
    key = "data.dataset" if split == TRAIN else "data.eval_dataset"
    if _exists(path):
        return [path]
    if not is_pattern(name):
        raise TrainingError(f"{key} {shown(name)!r} does not exist (correct the path)")
    matches = islice(iglob(str(path), recursive=True), MAX_FILES + 1)
    files = sorted({found for match in matches if (found := Path(match)).is_file()})
    if len(files) > MAX_FILES:
        raise TrainingError(f"{key} {shown(name)!r} matches over {MAX_FILES:,} files (narrow it)")
    if not files:
        raise TrainingError(f"{key} {shown(name)!r} matches no file (correct the pattern)")
    return files


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError as error:
        fix = "make its folders readable"
        raise TrainingError(f"{shown(path)}: cannot be read: {error.strerror} ({fix})") from error
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False
    return True
