"""Where images are saved: in new files, never over what is there already."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import click

from truthgpt_serve.cli._image.drawing import Drawn

_UNSAFE = re.compile(r"[^\w.-]+")


class Target:
    """The files of one request.

    Args:
        out: The file that the user named, or None.
        model: The model, for names when there is none.
        number: How many images are wanted.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        click.UsageError: A file is there already, or cannot be made.
    """

    def __init__(self, out: Path | None, model: str, number: int, *, overwrite: bool) -> None:
        self._out = out
        self._model = _UNSAFE.sub("-", model).strip(".-") or "image"
        self._number = number
        self._overwrite = overwrite
        folder = out.parent if out is not None else Path()
        if not folder.is_dir():
            raise click.UsageError(f"{folder} is not a folder: make it, or name another")
        for path in () if out is None else (self._named(out, index) for index in range(number)):
            if path.exists() and not overwrite:
                raise click.UsageError(
                    f"{path} exists already: name another file, or give --overwrite"
                )
            if path.exists() and not path.is_file():  # a device such as /dev/null would be lost
                raise click.UsageError(f"{path} is not a regular file: name another")

    def _named(self, out: Path, index: int) -> Path:
        return out if self._number == 1 else out.with_name(f"{out.stem}-{index}{out.suffix}")

    def save(self, image: Drawn) -> Path:
        """Writes an image; returns its file.

        Raises:
            click.ClickException: It cannot be written.
        """
        try:
            if self._out is not None and self._overwrite:
                path = self._named(self._out, image.index)
                work = path.with_name(f".{path.name}.new")
                work.write_bytes(image.data)
                work.replace(path)
                return path
            for path in self._candidates(image):
                try:
                    with path.open("xb") as file:
                        file.write(image.data)
                except FileExistsError:
                    continue
                return path
            raise click.ClickException(f"{self._out} exists by now: the image is not saved")
        except OSError as error:
            raise click.ClickException(f"the image cannot be saved: {error}") from error

    def _candidates(self, image: Drawn) -> itertools.chain[Path]:
        """Returns the names to try: the user's only, or of our own as many as it takes."""
        if self._out is not None:
            return itertools.chain([self._named(self._out, image.index)])
        stem = self._model if image.seed is None else f"{self._model}-{image.seed}"
        others = (Path(f"{stem}-{number}.png") for number in itertools.count(2))
        return itertools.chain([Path(f"{stem}.png")], others)
