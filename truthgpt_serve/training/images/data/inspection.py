"""Looks at every row before training: its captions, and the headers of its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgpt_serve.training.data import Row
from truthgpt_serve.training.data.image_folder import is_file
from truthgpt_serve.training.data.rows import columns_of, text_of
from truthgpt_serve.training.images.data.image_files import ImageFileError, Size, read_size

Spread = Callable[[int, Callable[[int], Any]], list[Any]]
"""Calls a function with 0, 1, ... up to a number, possibly on several workers; returns all."""


def alone(count: int, function: Callable[[int], Any]) -> list[Any]:
    """The `Spread` of one process."""
    return [function(index) for index in range(count)]


@dataclass(frozen=True, slots=True)
class Columns:
    """What is read of a row.

    Attributes:
        data: The section `data` of the configuration.
        conditioned: Whether each image has one that a ControlNet follows.
        placeholder: Word that must be in each caption, or empty.
    """

    data: Mapping[str, Any]
    conditioned: bool = False
    placeholder: str = ""

    @property
    def needs_inspection(self) -> bool:
        """Whether rows must be looked at before training."""
        wanted = self.data["aspect_ratio_buckets"] or self.data["min_edge"] is not None
        return bool(wanted or self.conditioned or self.placeholder)

    def captions(self, row: Row) -> tuple[tuple[str, ...], str]:
        """Returns the captions of a row, one of which is read each time, and what is wrong."""
        given = self.data["caption"]
        if given is not None:
            return tuple([given] if isinstance(given, str) else given), row.problem
        caption, problem = text_of(row.values, self.data["caption_field"])
        problem = row.problem or problem
        if not problem and self.placeholder not in caption:
            problem = (
                f"{self.data['caption_field']!r} does not have the placeholder "
                f"{self.placeholder!r}, so nothing is learned from it: {caption!r}"
            )
        return (caption,), problem

    def images(self, row: Row) -> tuple[list[Any], str]:
        """Returns the image, and behind it the one that a ControlNet follows, or a problem."""
        fields = [self.data["image_field"]]
        fields += [self.data["conditioning_field"]] if self.conditioned else []
        for field in fields:
            if field not in row.values:
                return [], f"has no {field!r} column (it has {columns_of(row.values)})"
        return [_beside(row, field) for field in fields], ""

    def inspect(self, row: Row) -> Size | str:
        """Returns the size of a row's image, or why the row cannot be used."""
        _, problem = self.captions(row)
        if problem:
            return problem
        images, problem = self.images(row)
        if problem:
            return problem
        try:
            sizes = [read_size(image) for image in images]
        except ImageFileError as error:
            return error.message
        return self.size_problem(sizes) or sizes[0]

    def size_problem(self, sizes: Sequence[Size]) -> str:
        """Returns what is wrong with the sizes of a row's images, or nothing."""
        least = self.data["min_edge"]
        if least is not None and min(sizes[0]) < least:
            return f"the image is {sizes[0]}, and data.min_edge is {least}"
        if len(sizes) > 1 and sizes[1] != sizes[0]:
            name = self.data["conditioning_field"]
            return f"{name!r} is {sizes[1]} and the image {sizes[0]}: they must be of one size"
        return ""


def _beside(row: Row, field: str) -> Any:
    """Returns a row's image; a relative path is looked up beside the file of the row."""
    image = row.values[field]
    if isinstance(image, str) and not Path(image).is_absolute():
        beside = Path(row.place.rpartition(":")[0]).parent / image
        if is_file(beside):
            return str(beside)
    return image
