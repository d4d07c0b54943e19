"""Tells color, shape and place of the one thing in an image, by measuring.

The thing is what differs from the ground at the edge: its color is the hue of its middle, if
most of it has that hue, its place where its pixels are on average, its shape the one whose drawing,
of its size and where it is, covers it best. No model is involved, and nothing is learned. Does not
know what was asked for.
"""

from __future__ import annotations

import colorsys
import math
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.shipped.shapes_draw import (
    COLORS,
    EDGE,
    PLACES,
    SHAPES,
    SPACING,
    Kind,
    draw_mask,
)

Mask = NDArray[np.bool_]
Cover = NDArray[np.float64]
"""How much of each pixel something covers, from 0 to 1."""

LEAST_CONTRAST = 0.2
"""Distance in color (each channel from 0 to 1) below which there is nothing on the ground."""

LEAST_SATURATION = 0.25
"""Below it a thing is gray, which is none of the colors."""

LEAST_OVERLAP = 0.72
"""Share of a thing and of the drawing, taken together, that both must cover: a soft or crooked edge
takes a tenth of it. A kind of shape that is none of the six counts as the nearest."""

STEEPNESS = 2
"""How much steeper than in the image a thing's edges are taken to be: a model's are soft."""

LEAST_PURE = 0.8
"""Share of a thing's middle that must be of its color by itself, not only on average."""

LEAST_SHARE = 0.9
"""Share of all that differs from the ground that must be one connected thing."""

LARGEST_SHARE = 0.6
"""Share of the image's edge that a thing may measure; what is larger is no thing but a ground."""

DARK = 0.35
"""Lightness of the ground below which an image is one of the night."""

_SIZES, _SHIFTS = (0.92, 1.0, 1.08), (-0.5, 0.0, 0.5)
"""Around the size and the place that a thing's pixels suggest: how much larger, how far off."""
_FINENESS_PX = 4
"""Drawings are made for radii and places in steps of one part in so many of a pixel."""


def recognize(image: Image.Image) -> Kind | None:
    """Returns what the image shows, or None if it is no single thing of a known kind."""
    pixels = np.asarray(image.convert("RGB").resize((EDGE, EDGE)), dtype=np.float64) / 255
    contrast = _contrast(pixels)
    highest = float(np.quantile(contrast, 0.99))
    if highest < LEAST_CONTRAST:
        return None
    everything = contrast > highest / 2
    thing = _largest_part(everything)
    if thing.sum() < LEAST_SHARE * everything.sum():
        return None
    color = _find_color(pixels[thing & (contrast > 0.8 * highest)])
    cover = (STEEPNESS * (contrast / highest - 0.5) + 0.5).clip(0, 1) * _grown(thing)
    shape = _find_shape(cover) if _fits(thing) else None
    if color is None or shape is None:
        return None
    return Kind(color, shape, _find_place(thing))


def measure_ground(image: Image.Image) -> float:
    """Returns how light the image's edge is, from 0 (black) to 1."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    return float(np.median(_edge(pixels).max(axis=-1)))


def _edge(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _contrast(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each pixel's distance in color from the ground, which is the edge's commonest."""
    ground = np.median(_edge(pixels), axis=0)
    distance: NDArray[np.float64] = np.abs(pixels - ground).max(axis=-1)
    return distance


def _largest_part(mask: Mask) -> Mask:
    """Returns the largest connected part, where neighbors share an edge or a corner."""
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


def _find_color(pixels: NDArray[np.float64]) -> str | None:
    """Returns the color of pixels (shape [num, 3]), or None if they are gray or of several."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(float(part) for part in pixels.mean(axis=0)))
    if saturation < LEAST_SATURATION:
        return None
    color = _nearest(hue)
    same = [_nearest(colorsys.rgb_to_hsv(*pixel)[0]) == color for pixel in pixels.tolist()]
    return color if sum(same) >= LEAST_PURE * len(same) else None


def _nearest(hue: float) -> str:
    def distance(name: str) -> float:
        apart = abs(360 * hue - COLORS[name][0])
        return min(apart, 360 - apart)

    return min(COLORS, key=distance)


def _find_place(thing: Mask) -> str:
    y, x = np.argwhere(thing).mean(axis=0) + 0.5
    column, row = (int(np.clip(round((part - EDGE / 2) / SPACING), -1, 1)) for part in (x, y))
    return list(PLACES)[3 * (row + 1) + column + 1]


def _fits(thing: Mask) -> bool:
    """Returns whether the thing is neither long nor tiny nor huge."""
    height, width = (int(np.ptp(np.flatnonzero(thing.any(axis=axis)))) + 1 for axis in (1, 0))
    return 0.7 < width / height < 1.45 and 6 <= width <= LARGEST_SHARE * EDGE


def _grown(thing: Mask) -> Mask:
    """Returns the thing and the pixels beside it, which it covers in part."""
    padded = np.pad(thing, 1)
    near = [padded[y : y + EDGE, x : x + EDGE] for y in range(3) for x in range(3)]
    grown: Mask = np.logical_or.reduce(near)
    return grown


def _find_shape(cover: Cover) -> str | None:
    overlaps = {shape: _overlap(cover, shape) for shape in SHAPES}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else None


def _overlap(cover: Cover, shape: str) -> float:
    """Returns the largest overlap of a thing with a drawing of the shape, from 0 to 1."""
    area, off_y, off_x = _measure(shape)
    radius = math.sqrt(float(cover.sum()) / area)
    y, x = _middle(cover)
    best = 0.0
    for size, up, aside in product(_SIZES, _SHIFTS, _SHIFTS):
        drawn = _draw(shape, radius * size, y - off_y * radius + up, x - off_x * radius + aside)
        best = max(best, float(np.minimum(cover, drawn).sum() / np.maximum(cover, drawn).sum()))
    return best


def _middle(cover: Cover) -> tuple[float, float]:
    steps = np.arange(EDGE) + 0.5
    total = float(cover.sum())
    return float(cover.sum(axis=1) @ steps) / total, float(cover.sum(axis=0) @ steps) / total


@lru_cache(maxsize=len(SHAPES))
def _measure(shape: str) -> tuple[float, float, float]:
    """Returns area (of a radius of 1), and how far down and right its pixels are of its center."""
    radius = EDGE / 4
    cover = _draw_at(shape, radius, 0.0, 0.0)
    y, x = _middle(cover)
    middle = EDGE / 2
    return float(cover.sum()) / radius**2, (y - middle) / radius, (x - middle) / radius


def _draw(shape: str, radius: float, y: float, x: float) -> Cover:
    """Returns a drawing, of nearly this radius (in pixels) and nearly at this place."""
    middle = EDGE // 2
    places = [round((part - middle) * _FINENESS_PX) for part in (y, x)]
    (rows, up), (columns, aside) = (divmod(place, _FINENESS_PX) for place in places)
    fine = 1 / _FINENESS_PX
    drawn = _draw_at(shape, round(radius / fine) * fine, up * fine, aside * fine)
    return np.roll(drawn, (rows, columns), axis=(0, 1))


@lru_cache(maxsize=8192)
def _draw_at(shape: str, radius: float, up: float, aside: float) -> Cover:
    """Returns the drawing in the middle, but for parts of a pixel."""
    mask = draw_mask(shape, (EDGE / 2 + aside, EDGE / 2 + up), radius)
    return np.asarray(mask, dtype=np.float64) / 255
