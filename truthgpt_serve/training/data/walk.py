"""Walks a folder of data: what a reader may see of it, links resolved, in a fixed order."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from truthgpt_serve.training.data.inventory import Inventory, shown
from truthgpt_serve.training.data.kinds import COMPRESSIONS
from truthgpt_serve.training.errors import TrainingError

MAX_FILES = 1_000_000
"""Files of one folder; a folder of more is a disk rather than a data set."""
TOOL_FOLDERS = frozenset({"__pycache__", "__MACOSX", "node_modules", "lost+found"})
_EDITORS_COPY = re.compile(
    r".*~$|~\$.*|#.*#$|.*\.(swp|swo|bak|orig|tmp|temp|part|partial|crdownload|rej|old|lock)$"
    r"|copy of .*|.*(?: - copy| copy| \(copy\))(?: ?\(?\d+\)?)?(?:\.[a-z]+)*$",
    re.IGNORECASE,
)
HIDDEN = "hidden"
COPY = "an editor's or a download's copy"
PACKED = "the compressed form of a file that is read"
RUN_FILES = frozenset({".lock", "run.json"})
"""What marks the folder of a training run, whose logs and tables are no data to train on."""


class Walk:
    """One walk; `files` are the regular files that were found, sorted by path.

    Args:
        root: The folder.
        inventory: Is told what is left out.

    Raises:
        TrainingError: A folder cannot be listed, or there are too many files.
    """

    def __init__(self, root: Path, inventory: Inventory) -> None:
        self.root = root
        self._inventory = inventory
        self._seen: set[tuple[int, int]] = set()
        self._links: list[Path] = []
        self.files: list[Path] = []
        self.broken_links: list[Path] = []
        self._folders(root)
        # Last, so that what is inside the folder has its own name rather than that of a link.
        while self._links:
            self._folders(self._links.pop(0))
        self.files.sort()

    def name(self, path: Path) -> str:
        """Returns a path as messages show it: from the folder on."""
        return str(path.relative_to(self.root))

    def _folders(self, first: Path) -> None:
        waiting = [first]
        while waiting:
            folder = waiting.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self._inventory.leave_out(self.name(folder), "a link to a folder that is read")
                continue
            self._seen.add((status.st_dev, status.st_ino))
            waiting += self._list(folder)

    def _list(self, folder: Path) -> list[Path]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise TrainingError(
                f"{shown(folder)}: the folder cannot be listed: {reason} (make it readable)"
            ) from error
        if folder != self.root and any(entry.name in RUN_FILES for entry in found):
            self._inventory.leave_out(self.name(folder), "the folder of a training run")
            return []
        folders: list[Path] = []
        for entry in found:
            path = Path(entry.path)
            if reason := _not_data(entry.name):
                self._inventory.leave_out(self.name(path), reason)
            elif _is_folder(entry):
                (self._links if entry.is_symlink() else folders).append(path)
            else:
                self._add(path)
        return folders

    def _add(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except OSError:
            self.broken_links.append(path)
            return
        if not stat.S_ISREG(mode):
            self._inventory.leave_out(self.name(path), "not a regular file")
            return
        self.files.append(path)
        if len(self.files) > MAX_FILES:
            fix = "name the folder with the data itself"
            raise TrainingError(f"{shown(self.root)}: holds over {MAX_FILES:,} files ({fix})")


def _not_data(name: str) -> str:
    if name.startswith("."):
        return HIDDEN
    if name in TOOL_FOLDERS:
        return "a tool's folder"
    return COPY if _EDITORS_COPY.match(name) else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def drop_twins(files: list[Path], root: Path, inventory: Inventory) -> list[Path]:
    """Returns the files without links to others of them, which would be read twice."""
    first: dict[tuple[int, int], Path] = {}
    for file in sorted(files, key=lambda file: (file.is_symlink(), file)):
        status = file.stat()
        other = first.setdefault((status.st_dev, status.st_ino), file)
        if other is not file:
            inventory.leave_out(str(file.relative_to(root)), "a link to a file that is read")
    return sorted(first.values())


def drop_packed(files: list[Path], root: Path, inventory: Inventory) -> list[Path]:
    """Returns the files without compressed ones beside what they hold, or beside each other."""
    chosen = [file for file in files if file.suffix.lower() not in COMPRESSIONS]
    seen = set(chosen)
    for file in files:
        if file in seen:
            continue
        if (plain := file.with_suffix("")) in seen:
            inventory.leave_out(str(file.relative_to(root)), PACKED)
        elif file.suffix.lower() in COMPRESSIONS:
            seen.add(plain)
            chosen.append(file)
    return sorted(chosen)
