"""Draws colored shapes in named places, and says in words what was drawn."""

from __future__ import annotations

import colorsys
import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

from PIL import Image, ImageDraw

Style = Literal["plain", "night"]
"""`plain`: on a pale ground; `night`: on a dark one."""

EDGE = 64
"""Pixels of an image's edge."""

COLORS = {
    "red": (0, 0.85),
    "orange": (28, 0.9),
    "yellow": (54, 0.9),
    "green": (120, 0.8),
    "turquoise": (178, 0.8),
    "blue": (225, 0.85),
    "purple": (275, 0.75),
    "pink": (326, 0.6),
}
"""Each color's hue in degrees, and its saturation."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")

PLACES = {
    "top left": ("in the top left", "at the top left", "in the upper left corner"),
    "top": ("at the top", "at the top in the middle", "up in the middle"),
    "top right": ("in the top right", "at the top right", "in the upper right corner"),
    "left": ("on the left", "on the left side", "at the left edge"),
    "centre": ("in the centre", "in the middle", "in the center"),
    "right": ("on the right", "on the right side", "at the right edge"),
    "bottom left": ("in the bottom left", "at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "at the bottom in the middle", "down in the middle"),
    "bottom right": ("in the bottom right", "at the bottom right", "in the lower right corner"),
}
"""Each place's phrases, in reading order of a grid of three by three."""

SYNONYMS = {"turquoise": "cyan", "purple": "violet", "cross": "plus", "ring": "hoop"}

SPACING = 17
"""Pixels between the middles of neighboring places."""

SMALLEST, LARGEST = 8.0, 12.5
"""Radius of the shapes in pixels."""

HELD_OUT_SHARE = 0.15
"""Share of the combinations of color, shape and place that no training image shows."""

_SHIFT = 2.0
_OVERSAMPLING = 4


@dataclass(frozen=True)
class Kind:
    """What an image shows, as far as it is checked."""

    color: str
    shape: str
    place: str

    @property
    def is_held_out(self) -> bool:
        """Whether the combination is left out of training."""
        return self in _held_out()


def all_kinds() -> Iterator[Kind]:
    """Yields every combination of color, shape and place."""
    for color, shape, place in product(COLORS, SHAPES, PLACES):
        yield Kind(color, shape, place)


@lru_cache(maxsize=1)
def _held_out() -> frozenset[Kind]:
    """Returns a choice of combinations that looks random and is the same everywhere."""

    def digest(kind: Kind) -> str:
        return hashlib.sha256(f"{kind.color} {kind.shape} {kind.place}".encode()).hexdigest()

    kinds = sorted(all_kinds(), key=digest)
    return frozenset(kinds[: round(HELD_OUT_SHARE * len(kinds))])


@dataclass(frozen=True)
class Scene:
    """An image's kind, and all else that decides its pixels.

    Attributes:
        kind: Color, shape and place.
        radius: In pixels.
        center: x and y in pixels, from the top left.
        paint: Red, green and blue of the shape, from 0 to 1.
        ground: Red, green and blue of the ground at the top and at the bottom.
    """

    kind: Kind
    radius: float
    center: tuple[float, float]
    paint: tuple[float, float, float]
    ground: tuple[tuple[float, float, float], tuple[float, float, float]]


def create_scene(kind: Kind, rng: random.Random, style: Style = "plain") -> Scene:
    """Returns a scene of this kind with size, tints and exact position drawn at random."""
    index = list(PLACES).index(kind.place)
    middle = EDGE / 2
    x = middle + SPACING * (index % 3 - 1) + rng.uniform(-_SHIFT, _SHIFT)
    y = middle + SPACING * (index // 3 - 1) + rng.uniform(-_SHIFT, _SHIFT)
    pure, saturation = COLORS[kind.color]
    hue = (pure + rng.uniform(-5, 5)) % 360
    paint = colorsys.hsv_to_rgb(
        hue / 360, saturation + rng.uniform(-0.07, 0.07), rng.uniform(0.78, 0.95)
    )
    tint, turn = rng.random(), rng.uniform(-0.03, 0.03)
    depth, light = rng.uniform(0, 0.1), rng.uniform(0.88, 0.97)
    if style == "night":
        depth, light = rng.uniform(0.2, 0.6), rng.uniform(0.08, 0.18)
    ground = (
        colorsys.hsv_to_rgb(tint, depth, light + turn),
        colorsys.hsv_to_rgb(tint, depth, light - turn),
    )
    return Scene(kind, rng.uniform(SMALLEST, LARGEST), (x, y), paint, ground)


def draw_scene(scene: Scene) -> Image.Image:
    """Returns the scene as an RGB image of EDGE x EDGE pixels."""
    top, bottom = (tuple(round(255 * part) for part in color) for color in scene.ground)
    mix = Image.linear_gradient("L").resize((EDGE, EDGE))
    ground = Image.composite(
        Image.new("RGB", (EDGE, EDGE), bottom), Image.new("RGB", (EDGE, EDGE), top), mix
    )
    paint = Image.new("RGB", (EDGE, EDGE), tuple(round(255 * part) for part in scene.paint))
    return Image.composite(paint, ground, draw_mask(scene.kind.shape, scene.center, scene.radius))


def draw_mask(shape: str, center: tuple[float, float], radius: float) -> Image.Image:
    """Returns how much of each pixel the shape covers, 0 to 255, as EDGE x EDGE gray pixels."""
    big = EDGE * _OVERSAMPLING
    mask = Image.new("L", (big, big), 0)
    x, y = (_OVERSAMPLING * part for part in center)
    _draw_shape(ImageDraw.Draw(mask), shape, x, y, _OVERSAMPLING * radius)
    return mask.resize((EDGE, EDGE), Image.Resampling.BOX)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    if shape in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            hole = 0.55 * r
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    elif shape == "square":
        side = 0.88 * r
        draw.rectangle((x - side, y - side, x + side, y + side), fill=255)
    elif shape == "cross":
        arm = 0.32 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=255)
    elif shape == "star":
        angles = [math.pi * (step / 5 - 0.5) for step in range(10)]
        radii = [1.1 * r, 0.45 * r] * 5
        corners = [
            (x + length * math.cos(angle), y + length * math.sin(angle))
            for angle, length in zip(angles, radii, strict=True)
        ]
        draw.polygon(corners, fill=255)
    else:
        raise ValueError(f"there is no shape {shape!r}: take one of {', '.join(SHAPES)}")


def write_caption(scene: Scene, rng: random.Random) -> str:
    """Returns one of many ways to say what the scene shows."""
    kind = scene.kind
    words = [kind.color, kind.shape]
    words = [SYNONYMS.get(word, word) if rng.random() < 0.2 else word for word in words]
    third = (LARGEST - SMALLEST) / 3
    if rng.random() < 0.4 and scene.radius < SMALLEST + third:
        words.insert(0, "small")
    elif rng.random() < 0.4 and scene.radius > LARGEST - third:
        words.insert(0, "big")
    bare = " ".join(words)
    what = f"{'an' if bare[0] in 'aeiou' else 'a'} {bare}"
    # The first phrase is the one that people think of first.
    phrases = PLACES[kind.place]
    where = phrases[0] if rng.random() < 0.5 else rng.choice(phrases)
    pattern = rng.choice(
        (
            "{what} {where}",
            "{what} {where}",
            "{what} {where}",
            "{where} there is {what}",
            "draw {what} {where}",
            "a picture of {what} {where}",
            "the {bare} is {where}",
            "{bare}, {place}",
            "{what}, {place}",
        )
    )
    return pattern.format(what=what, where=where, bare=bare, place=kind.place)
