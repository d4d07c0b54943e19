from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from deployments.hf_diffusers.inputs.images import fit, to_image, to_mask, to_tensor


def create_image(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def test_images_survive_the_way_in_and_out() -> None:
    image = create_image()
    assert to_image(to_tensor(image, 64, 48)).tobytes() == image.tobytes()
    assert to_image(image) is image
    halves = torch.full((3, 1, 1), 127.5 / 255)
    assert to_image(halves).getpixel((0, 0)) == (128, 128, 128)


def test_a_mask_without_alpha_is_white_where_to_paint() -> None:
    assert to_mask(Image.new("RGB", (2, 2), "white")).getpixel((0, 0)) == 255
    assert to_mask(Image.new("RGBA", (2, 2), (255, 255, 255, 255))).getpixel((0, 0)) == 0


def test_fit_keeps_within_the_limits() -> None:
    for width, height in [(1, 1), (5000, 40), (333, 777), (16, 9000)]:
        found = fit(width, height, multiple=16, max_pixels=10**6, max_edge=2048, min_edge=40)
        assert all(edge % 16 == 0 and 48 <= edge <= 2048 for edge in found)
