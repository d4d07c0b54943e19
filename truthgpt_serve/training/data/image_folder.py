"""A folder of images with captions: `metadata.jsonl`, or a text file beside each image.

Opens no image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.find import Found
from truthgpt_serve.training.data.inventory import Inventory
from truthgpt_serve.training.data.kinds import METADATA, is_metadata
from truthgpt_serve.training.data.readers import read_file
from truthgpt_serve.training.data.rows import Row, text_of, text_problem
from truthgpt_serve.training.data.streams import MAX_LINE_BYTES
from truthgpt_serve.training.errors import TrainingError

FILE_FIELD = "file_name"


def read_image_folder(
    found: Found, image_field: str, caption_field: str, bad_rows: BadRows, inventory: Inventory
) -> Iterator[Row]:
    """Yields the absolute path of each image as `image_field`, and its caption.

    `metadata.jsonl`, `.csv` or `.parquet` has a row for each image, with `file_name` and the
    caption's column, as the hub's image folders do. Without it `name.txt` beside `name.png` holds
    the caption.
    """
    folder = _ImageFolder(found, image_field, caption_field, bad_rows, inventory)
    if any(is_metadata(file) for file in found.rows):
        yield from folder.by_metadata()
    else:
        yield from folder.by_neighbor()


class _ImageFolder:
    def __init__(
        self,
        found: Found,
        image_field: str,
        caption_field: str,
        bad_rows: BadRows,
        inventory: Inventory,
    ) -> None:
        self._found = found
        self._image_field = image_field
        self._caption_field = caption_field
        self._bad_rows = bad_rows
        self._inventory = inventory

    def by_metadata(self) -> Iterator[Row]:
        named: set[Path] = set()
        seen: dict[Path, Path] = {}
        for file in self._found.rows:
            if not is_metadata(file):
                self._leave_out(file, f"the captions come from {METADATA}")
                continue
            other = seen.setdefault(file.parent, file)
            if other is not file:
                both = f"{self._found.name(other)} and {self._found.name(file)}"
                raise TrainingError(f"{self._found.root}: holds both {both} (keep one)")
            self._inventory.read([self._found.name(file)])
            for row in read_file(file, self._caption_field, self._bad_rows):
                image, problem = self._image_of(row, file.parent)
                if problem:
                    self._bad_rows.report(row.place, problem)
                    continue
                named.add(image)
                yield Row({**row.values, self._image_field: str(image)}, row.place)
        for image in self._found.images:
            if image not in named:
                self._leave_out(image, f"no usable row of {METADATA} names it")

    def _image_of(self, row: Row, folder: Path) -> tuple[Path, str]:
        name, problem = text_of(row.values, FILE_FIELD)
        if not problem:
            _, problem = text_of(row.values, self._caption_field)
        image = folder / name
        if not problem and not is_file(image):
            problem = f"there is no image {str(image)!r}"
        return image, problem

    def by_neighbor(self) -> Iterator[Row]:
        captions = {file.with_suffix(""): file for file in self._found.rows}
        images = {image.with_suffix("") for image in self._found.images}
        for stem, file in captions.items():
            if stem not in images:
                self._leave_out(file, "no image beside it has its name")
        self._inventory.read(self._found.name(image) for image in self._found.images)
        for image in self._found.images:
            file = captions.get(image.with_suffix(""), image.with_suffix(".txt"))
            caption, problem = _read_caption(file)
            if problem:
                missing = image if file not in self._found.rows else file
                self._bad_rows.report(str(missing), problem)
                continue
            yield Row({self._image_field: str(image), self._caption_field: caption}, str(image))

    def _leave_out(self, file: Path, reason: str) -> None:
        self._inventory.leave_out(self._found.name(file), reason)


def is_file(path: Path) -> bool:
    """Returns whether a path is a file that may be looked at."""
    try:
        return path.is_file()
    except (
        OSError,
        ValueError,
    ):  # a name that is too long, or a folder that may not be looked into
        return False


def _read_caption(file: Path) -> tuple[str, str]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_LINE_BYTES + 1)
    except FileNotFoundError:
        return "", f"has no caption: there is no {file.name} beside it"
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    if len(content) > MAX_LINE_BYTES:
        return "", f"is longer than {MAX_LINE_BYTES >> 20} MiB"
    try:
        caption = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", "is not UTF-8 text"
    return caption, text_problem(caption) if caption else "is empty"
