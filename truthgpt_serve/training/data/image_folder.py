"""A folder of images with captions: `metadata.jsonl`, or a text file beside each image.

Opens no image. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.readers import read_jsonl
from truthgpt_serve.training.data.rows import Row, text_of

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
METADATA = "metadata.jsonl"
FILE_FIELD = "file_name"


def read_image_folder(
    folder: Path, image_field: str, caption_field: str, bad_rows: BadRows
) -> Iterator[Row]:
    """Yields the absolute path of each image as `image_field`, and its caption.

    `metadata.jsonl` has a line for each image, with `file_name` and the caption's column, as the
    hub's image folders do. Without it `name.txt` beside `name.png` holds the caption.
    """
    metadata = folder / METADATA
    if metadata.is_file():
        yield from _by_metadata(metadata, image_field, caption_field, bad_rows)
    else:
        yield from _by_neighbour(folder, image_field, caption_field, bad_rows)


def _by_metadata(
    metadata: Path, image_field: str, caption_field: str, bad_rows: BadRows
) -> Iterator[Row]:
    for row in read_jsonl(metadata, caption_field, bad_rows):
        name, problem = text_of(row.values, FILE_FIELD)
        if not problem:
            _, problem = text_of(row.values, caption_field)
        image = metadata.parent / name
        if not problem and not image.is_file():
            problem = f"there is no image {str(image)!r}"
        if problem:
            bad_rows.report(row.place, problem)
            continue
        yield Row({**row.values, image_field: str(image)}, row.place)


def _by_neighbour(
    folder: Path, image_field: str, caption_field: str, bad_rows: BadRows
) -> Iterator[Row]:
    for image in sorted(folder.rglob("*")):
        if image.suffix.lower() not in IMAGE_SUFFIXES or not image.is_file():
            continue
        file = image.with_suffix(".txt")
        try:
            caption = file.read_text(encoding="utf-8").strip()
        except OSError:
            bad_rows.report(str(image), f"has no caption: there is no {file.name} beside it")
            continue
        except UnicodeDecodeError:
            bad_rows.report(str(file), "is not UTF-8 text")
            continue
        if not caption:
            bad_rows.report(str(file), "is empty")
            continue
        yield Row({image_field: str(image), caption_field: caption}, str(image))
