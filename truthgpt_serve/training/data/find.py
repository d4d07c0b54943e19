"""Finds what is to be read of a local data set, and says what is left out or in the way."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from truthgpt_serve.training.data.inventory import Inventory, listed, shown
from truthgpt_serve.training.data.kinds import (
    IMAGE_SUFFIXES,
    METADATA,
    ROW_SUFFIXES,
    Kind,
    format_of,
    is_metadata,
    kind_of,
    stem_of,
)
from truthgpt_serve.training.data.splits import Split, choose_split, splits_of
from truthgpt_serve.training.data.walk import Walk, drop_packed, drop_twins
from truthgpt_serve.training.errors import TrainingError

Content = Literal["any", "text", "images"]
KNOWN = ", ".join(ROW_SUFFIXES)
_MOVE = "convert or move it, or name the file to read itself"


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be read.

    Attributes:
        root: The data set's folder, or its only file.
        is_images: Whether it is a folder of images; its rows are read as they are otherwise.
        rows: Files of rows; of a folder of images those with captions.
        images: Images of a folder of images.
    """

    root: Path
    is_images: bool
    rows: list[Path]
    images: list[Path] = field(default_factory=list)

    def name(self, file: Path) -> str:
        """Returns a file's path from the data set's folder on."""
        return file.name if file == self.root else str(file.relative_to(self.root))


def find_data(path: Path, split: Split, content: Content, inventory: Inventory) -> Found:
    """Returns what is to be read at a path.

    Args:
        path: A file, or a folder.
        split: What the rows are for.
        content: What they are to hold.
        inventory: Is told what is left out.

    Raises:
        TrainingError: There is nothing to read, or something that cannot be read with the rest.
    """
    if path.is_file():
        if not format_of(path):
            kind = path.suffix or "this kind of"
            raise TrainingError(f"{shown(path)}: cannot read {shown(kind)} files ({KNOWN})")
        return Found(path, False, [path])
    if not path.is_dir():
        raise TrainingError(f"{shown(path)}: is neither a file nor a folder (name one)")
    walk = Walk(path, inventory)
    _check_links(walk)
    folder = _Folder(walk, split, inventory)
    return folder.find_images() if _is_image_folder(walk.files, content) else folder.find_rows()


def _check_links(walk: Walk) -> None:
    broken = [walk.name(link) for link in walk.broken_links if kind_of(link) is not Kind.NO_DATA]
    if broken:
        fix = "fetch the data, or remove the links"
        raise TrainingError(f"{shown(walk.root)}: broken links: {listed(broken)} ({fix})")


def _is_image_folder(files: Collection[Path], content: Content) -> bool:
    if content == "text":
        return False
    if content == "images" and any(is_metadata(file) for file in files):
        return True
    rows = any(_is_table(file) and not is_metadata(file) for file in files)
    return not rows and any(kind_of(file) is Kind.IMAGE for file in files)


def _is_table(file: Path) -> bool:
    return kind_of(file) is Kind.ROWS and format_of(file) != ".txt"


class _Folder:
    def __init__(self, walk: Walk, split: Split, inventory: Inventory) -> None:
        self._walk = walk
        self._root = walk.root
        self._split = split
        self._inventory = inventory
        for link in walk.broken_links:
            inventory.leave_out(walk.name(link), "a broken link")

    def find_rows(self) -> Found:
        data = []
        for file in self._walk.files:
            if kind_of(file) in (Kind.ROWS, Kind.OTHER_ROWS, Kind.DOCUMENT):
                data.append(file)
            else:
                is_image = kind_of(file) is not Kind.NO_DATA
                self._leave_out(file, "an image" if is_image else "not data by its name")
        chosen = self._choose(data, lambda file: True)
        self._refuse(chosen, Kind.OTHER_ROWS, f"only {KNOWN} are read")
        if len({format_of(file) for file in chosen}) > 1:
            names = listed(self._one_of_each(chosen))
            message = f"holds data of several kinds, such as {names}"
            raise TrainingError(f"{shown(self._root)}: {message} (keep one of {KNOWN})")
        rows = [file for file in chosen if kind_of(file) is Kind.ROWS]
        for file in chosen:
            if kind_of(file) is Kind.DOCUMENT:
                self._leave_out(file, "about the project by its name")
        rows = drop_packed(self._not_empty(rows), self._root, self._inventory)
        rows = drop_twins(rows, self._root, self._inventory)
        if not rows:
            raise TrainingError(self._nothing(f"put in images, or files named {KNOWN}"))
        return Found(self._root, False, rows)

    def find_images(self) -> Found:
        data = []
        for file in self._walk.files:
            if kind_of(file) in (Kind.NO_DATA, Kind.DOCUMENT):
                self._leave_out(file, "not data by its name")
            else:
                data.append(file)
        # What an image shows may be called like a split.
        chosen = self._choose(data, lambda file: False)
        self._refuse(chosen, Kind.OTHER_ROWS, f"captions are read from {METADATA}, or name.txt")
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        self._refuse(chosen, Kind.OTHER_IMAGE, f"only {known} are read")
        tables = [file for file in chosen if _is_table(file) and not is_metadata(file)]
        if tables:
            names = listed([self._walk.name(file) for file in tables])
            message = f"holds data of several kinds: {names} beside {METADATA}"
            raise TrainingError(f"{shown(self._root)}: {message} (keep one, or name the file)")
        images = [file for file in chosen if kind_of(file) is Kind.IMAGE]
        rows = [file for file in chosen if kind_of(file) is Kind.ROWS]
        return Found(self._root, True, rows, images)

    def _choose(self, files: list[Path], by_name: Callable[[Path], bool]) -> list[Path]:
        named = [
            (file, splits_of(stem_of(file.relative_to(self._root)), by_name=by_name(file)))
            for file in files
        ]
        return choose_split(self._root, named, self._split, self._inventory)

    def _refuse(self, files: list[Path], kind: Kind, reason: str) -> None:
        names = [self._walk.name(file) for file in files if kind_of(file) is kind]
        if not names:
            return
        if len(names) == len(files):
            what = "holds no data that can be read"
            raise TrainingError(f"{shown(self._root)}: {what}: {listed(names)}; {reason} ({_MOVE})")
        what = "holds data of several kinds, not all of which can be read"
        raise TrainingError(f"{shown(self._root)}: {what}: {listed(names)}; {reason} ({_MOVE})")

    def _one_of_each(self, files: list[Path]) -> list[str]:
        return list({format_of(file): self._walk.name(file) for file in files}.values())

    def _not_empty(self, files: list[Path]) -> list[Path]:
        for file in files:
            if not file.stat().st_size:
                self._leave_out(file, "empty")
        return [file for file in files if file.stat().st_size]

    def _leave_out(self, file: Path, reason: str) -> None:
        self._inventory.leave_out(self._walk.name(file), reason)

    def _nothing(self, fix: str) -> str:
        found = "; ".join(self._inventory.describe_left_out())
        left_out = f"; left out: {found}" if found else ""
        return f"{shown(self._root)}: holds no data{left_out} ({fix})"
