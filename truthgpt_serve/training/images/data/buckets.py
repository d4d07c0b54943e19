"""Sizes of about the same area, to one of which each image is cut: its bucket."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgpt_serve.training.images.data.image_files import Size

MAX_SHOWN = 8
"""Buckets that the plan lists."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Which size each row of a data set is cut to.

    Attributes:
        sizes: The sizes that occur.
        of_row: For each row the index of its size.
    """

    sizes: tuple[Size, ...]
    of_row: NDArray[np.intp]

    def size(self, row: int) -> Size:
        """Returns the size of a row."""
        return self.sizes[int(self.of_row[row])]

    def rows(self) -> list[NDArray[np.intp]]:
        """Returns the rows of each size."""
        return [np.flatnonzero(self.of_row == index) for index in range(len(self.sizes))]

    def counts(self) -> tuple[int, ...]:
        """Returns how many rows each size has."""
        return tuple(len(rows) for rows in self.rows())

    def only(self, rows: Sequence[int]) -> Shapes:
        """Returns the shapes of some of the rows, without sizes that none of them has."""
        kept, of_row = np.unique(self.of_row[np.asarray(rows, dtype=np.intp)], return_inverse=True)
        return Shapes(tuple(self.sizes[index] for index in kept), of_row.reshape(-1))


def one_shape(size: Size, num_rows: int) -> Shapes:
    """Returns the shapes of rows that all have the same size."""
    return Shapes((size,), np.zeros(num_rows, dtype=np.intp))


def make_buckets(resolution: int, step: int, max_ratio: float) -> tuple[Size, ...]:
    """Returns the sizes that images are cut to, the widest last.

    Each has at most the area of the square, so that none takes more memory, and as much of it as
    the step allows.

    Args:
        resolution: Edge of the square in pixels, a multiple of `step`.
        step: Edges are multiples of it.
        max_ratio: Of the longer edge to the shorter.
    """
    found = set()
    for short in range(step, resolution + 1, step):
        long = resolution**2 // short // step * step
        if long <= max_ratio * short:
            found |= {Size(long, short), Size(short, long)}
    found.add(Size(resolution, resolution))
    return tuple(sorted(found, key=lambda size: size.width / size.height))


def choose_shapes(fulls: Sequence[Size], data: Mapping[str, Any]) -> Shapes:
    """Returns the shapes of images by their own sizes: to each the bucket of the nearest ratio.

    Args:
        fulls: Size of each image.
        data: The section `data` of the configuration.
    """
    buckets = make_buckets(data["resolution"], data["bucket_step"], data["max_aspect_ratio"])
    ratios = np.array([math.log(size.width / size.height) for size in buckets])
    wanted = np.array([math.log(size.width / size.height) for size in fulls])
    nearest = np.searchsorted((ratios[:-1] + ratios[1:]) / 2, wanted)
    return Shapes(buckets, nearest).only(range(len(fulls)))


def describe_buckets(shapes: Shapes, fulls: Sequence[Size], data: Mapping[str, Any]) -> list[str]:
    """Returns the plan's lines: how many images each bucket has, and what is lost of some."""
    sizes = sorted(zip(shapes.counts(), shapes.sizes, strict=True), reverse=True)
    listed = ", ".join(f"{size}: {count:,}" for count, size in sizes[:MAX_SHOWN])
    more = len(sizes) - MAX_SHOWN
    lines = [f"buckets  {listed}" + (f" and {more:,} more buckets" if more > 0 else "")]
    ratio = data["max_aspect_ratio"]
    long = sum(max(full) > ratio * min(full) for full in fulls)
    if long:
        lines.append(f"buckets  {long:,} images are longer than {ratio:g}:1; the rest is cut off")
    return lines
