"""Images of stock pipelines, and what a served one is compared by; knows no test."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


def stock_image(pipeline: Any, seed: int, **arguments: Any) -> Image.Image:
    """Returns the first image of a call, of 4 denoising steps unless it says otherwise."""
    generator = torch.Generator("cpu").manual_seed(seed)
    defaults = {"num_inference_steps": 4, "generator": generator}
    image = pipeline(**{**defaults, **arguments}).images[0]
    assert isinstance(image, Image.Image)
    return image


def assert_same(found: Image.Image, expected: Image.Image) -> None:
    """Compares pixel by pixel; rounding may move one by a level of 255."""
    assert found.size == expected.size
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(expected, dtype=int))
    assert difference.max() <= 1


def noise(width: int = 64, height: int = 64) -> Image.Image:
    """Returns an image of random pixels, the same each time."""
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)
