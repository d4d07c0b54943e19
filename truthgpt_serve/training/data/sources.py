"""From what `data.dataset` names to rows: a hub name, a file, or a folder of files.

The caller interprets the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from truthgpt_serve.config.paths import expand, must_be_local
from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.find import Content, find_data
from truthgpt_serve.training.data.hub import read_hub
from truthgpt_serve.training.data.image_folder import read_image_folder
from truthgpt_serve.training.data.inventory import Inventory, shown
from truthgpt_serve.training.data.kinds import ROW_SUFFIXES
from truthgpt_serve.training.data.readers import read_jsonl, read_parquet, read_text
from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.data.splits import TRAIN, Split
from truthgpt_serve.training.errors import TrainingError

READERS: dict[str, Callable[[Path, str, BadRows], Iterator[Row]]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""The reader of each kind of file: file, column of plain text, bad rows."""


def read_rows(
    dataset: str,
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
    """Yields the rows of a data set in a fixed order: files by name, then lines.

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
    if not is_local(dataset):
        yield from read_hub(dataset, subset, split, inventory)
        return
    root = local_path(dataset, split)
    found = find_data(root, split, content, inventory)
    if found.is_images:
        yield from read_image_folder(found, image_field, caption_field, bad_rows, inventory)
        return
    inventory.read(found.name(file) for file in found.rows)
    for file in found.rows:
        yield from READERS[file.suffix.lower()](file, text_field, bad_rows)


def is_local(dataset: str) -> bool:
    """Returns whether a data set is a local file or folder rather than a name of the hub."""
    path = expand(dataset)
    looks_local = path.is_absolute() or must_be_local(dataset)
    return looks_local or path.suffix.lower() in ROW_SUFFIXES or _exists(path)


def local_path(dataset: str, split: Split = TRAIN) -> Path:
    """Returns the path of a local data set.

    Raises:
        TrainingError: It does not exist, or cannot be looked at.
    """
    path = expand(dataset)
    key = "data.dataset" if split == TRAIN else "data.eval_dataset"
    if not _exists(path):
        raise TrainingError(f"{key} {shown(dataset)!r} does not exist (correct the path)")
    return path


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError as error:
        fix = "make its folders readable"
        raise TrainingError(f"{shown(path)}: cannot be read: {error.strerror} ({fix})") from error
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False
    return True
