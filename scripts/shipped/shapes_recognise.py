"""Tells colour, shape and place of the one thing in a picture, by measuring.

The thing is what differs from the ground at the edge: its colour is the hue of its middle, its
place where its pixels are on average, its shape the one whose outline covers it best. No model
is involved, and nothing is learned. Does not know what was asked for.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.shipped.shapes_draw import (
    COLOURS,
    EDGE,
    PLACES,
    SHAPES,
    SPACING,
    Kind,
    Scene,
    draw_scene,
)

Mask = NDArray[np.bool_]

LEAST_CONTRAST = 0.2
"""Distance in colour (each channel from 0 to 1) below which there is nothing on the ground."""

LEAST_SATURATION = 0.25
"""Below it a thing is grey, which is none of the colours."""

LEAST_OVERLAP = 0.7
"""Share of a shape and its outline, taken together, that both must cover."""

LEAST_SHARE = 0.9
"""Share of all that differs from the ground that must be one connected thing."""

LARGEST_SHARE = 0.6
"""Share of the picture's edge that a thing may measure; what is larger is no thing but a ground."""

_GRID = 24


def recognise(picture: Image.Image) -> Kind | None:
    """Returns what the picture shows, or None if it is no single thing of a known kind."""
    pixels = np.asarray(picture.convert("RGB").resize((EDGE, EDGE)), dtype=np.float64) / 255
    contrast = _contrast(pixels)
    highest = float(np.quantile(contrast, 0.99))
    if highest < LEAST_CONTRAST:
        return None
    everything = contrast > highest / 2
    thing = _largest_part(everything)
    if thing.sum() < LEAST_SHARE * everything.sum():
        return None
    colour = _find_colour(pixels[thing & (contrast > 0.8 * highest)].mean(axis=0))
    shape = _find_shape(thing)
    if colour is None or shape is None:
        return None
    return Kind(colour, shape, _find_place(thing))


def measure_ground(picture: Image.Image) -> float:
    """Returns how light the picture's edge is, from 0 (black) to 1."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    return float(np.median(_edge(pixels).max(axis=-1)))


def _edge(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _contrast(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each pixel's distance in colour from the ground, which is the edge's commonest."""
    ground = np.median(_edge(pixels), axis=0)
    distance: NDArray[np.float64] = np.abs(pixels - ground).max(axis=-1)
    return distance


def _largest_part(mask: Mask) -> Mask:
    """Returns the largest connected part, where neighbours share an edge or a corner."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    largest: list[tuple[int, int]] = []
    while left:
        part = [left.pop()]
        for y, x in part:
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            part.extend(near)
        largest = max(largest, part, key=len)
    result = np.zeros_like(mask)
    result[tuple(np.array(largest).T)] = True
    return result


def _find_colour(mean: NDArray[np.float64]) -> str | None:
    hue, saturation, _ = colorsys.rgb_to_hsv(*(float(part) for part in mean))
    if saturation < LEAST_SATURATION:
        return None

    def distance(name: str) -> float:
        apart = abs(360 * hue - COLOURS[name][0])
        return min(apart, 360 - apart)

    return min(COLOURS, key=distance)


def _find_place(thing: Mask) -> str:
    y, x = np.argwhere(thing).mean(axis=0) + 0.5
    column, row = (int(np.clip(round((part - EDGE / 2) / SPACING), -1, 1)) for part in (x, y))
    return list(PLACES)[3 * (row + 1) + column + 1]


def _find_shape(thing: Mask) -> str | None:
    outline = _cut_out(thing)
    if outline is None:
        return None
    overlaps = {
        shape: float((outline & other).sum() / (outline | other).sum())
        for shape, other in _outlines().items()
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else None


def _cut_out(thing: Mask) -> Mask | None:
    """Returns the thing scaled to a grid, or None if it is long, tiny or huge."""
    rows, columns = np.flatnonzero(thing.any(axis=1)), np.flatnonzero(thing.any(axis=0))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    if not 0.7 < width / height < 1.45 or not 6 <= width <= LARGEST_SHARE * EDGE:
        return None
    cut = thing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scaled = Image.fromarray(np.uint8(255) * cut).resize((_GRID, _GRID), Image.Resampling.BILINEAR)
    outline: Mask = np.asarray(scaled) > 127
    return outline


@lru_cache(maxsize=1)
def _outlines() -> dict[str, Mask]:
    """Returns each shape as it looks when it is drawn well, large and in the middle."""
    outlines = {}
    for shape in SHAPES:
        kind = Kind("red", shape, "centre")
        white = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
        scene = Scene(kind, EDGE / 4, (EDGE / 2, EDGE / 2), (0.0, 0.0, 0.0), white)
        drawn = np.asarray(draw_scene(scene).convert("L")) < 128
        outline = _cut_out(drawn)
        if outline is None:
            raise RuntimeError(f"the shape {shape} is not about as wide as it is high")
        outlines[shape] = outline
    return outlines
