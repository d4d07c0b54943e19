"""From what `data.dataset` names to rows: a hub name, a file, or a folder of files.

Knows which reader a file needs; what the columns mean is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from truthgpt_serve.config.paths import must_be_local
from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.hub import read_hub
from truthgpt_serve.training.data.image_folder import IMAGE_SUFFIXES, read_image_folder
from truthgpt_serve.training.data.readers import read_jsonl, read_parquet, read_text
from truthgpt_serve.training.data.rows import Row
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
) -> Iterator[Row]:
    """Yields the rows of a data set in a fixed order: files by name, then lines.

    Args:
        dataset: `data.dataset` or `data.eval_dataset`, local paths absolute.
        bad_rows: Takes the rows that cannot be read at all.
        subset: `data.subset`, of a hub data set.
        text_field: Column that a line of a `.txt` file becomes.
        image_field: Column of the path of an image, for a folder of images.
        caption_field: Column of its caption.

    Raises:
        TrainingError: There is no such data, it cannot be read, or a bad row stops the run.
    """
    path = Path(dataset).expanduser()
    if not path.exists():
        if path.is_absolute() or must_be_local(dataset) or path.suffix in READERS:
            raise TrainingError(f"data.dataset {dataset!r} does not exist (correct the path)")
        yield from read_hub(dataset, subset)
        return
    if path.is_dir() and is_image_folder(path):
        yield from read_image_folder(path, image_field, caption_field, bad_rows)
        return
    for file in data_files(path):
        yield from READERS[file.suffix](file, text_field, bad_rows)


def is_image_folder(path: Path) -> bool:
    """Returns whether a folder holds images rather than files of rows."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.rglob("*"))


def data_files(path: Path) -> list[Path]:
    """Returns the files of rows at `path`, a file or a folder, sorted by name.

    Raises:
        TrainingError: There is none, or a file is of another kind.
    """
    known = ", ".join(READERS)
    if path.is_file():
        if path.suffix not in READERS:
            raise TrainingError(
                f"{path}: cannot read {path.suffix or 'this kind of'} files ({known})"
            )
        return [path]
    files = sorted(file for file in path.rglob("*") if file.suffix in READERS and file.is_file())
    if not files:
        raise TrainingError(f"{path}: holds no data (put in images, or files named {known})")
    if len({file.suffix for file in files}) > 1:
        raise TrainingError(f"{path}: holds data of several kinds (keep one of {known})")
    return files
