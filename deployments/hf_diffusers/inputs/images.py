"""Converts PIL images to what pipelines take, and their tensors to PIL images.

Everything here may run in any thread.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

ALPHA_MODES = ("RGBA", "LA", "PA")


def upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as its EXIF data says."""
    return ImageOps.exif_transpose(image)


def has_holes(image: Image.Image) -> bool:
    """Returns whether some pixel is transparent."""
    if image.mode not in ALPHA_MODES:
        return False
    return any(image.getchannel("A").histogram()[:255])


def to_mask(mask: Image.Image) -> Image.Image:
    """Returns a mask in which white is painted anew.

    With an alpha channel the transparent parts are painted, as in OpenAI's API; without one the
    white parts, as in diffusers.
    """
    if mask.mode in ALPHA_MODES:
        return ImageOps.invert(mask.getchannel("A"))
    return mask.convert("L")


def fit(
    width: int, height: int, *, multiple: int, max_pixels: int, max_edge: int, min_edge: int
) -> tuple[int, int]:
    """Returns the possible size nearest to an image's, never larger but for the minimum."""
    shrink = min(1.0, math.sqrt(max_pixels / (width * height)), max_edge / max(width, height))
    least = math.ceil(min_edge / multiple) * multiple
    width, height = (
        max(least, math.floor(edge * shrink) // multiple * multiple) for edge in (width, height)
    )
    return width, height


def to_tensor(image: Image.Image, width: int, height: int) -> torch.Tensor:
    """Returns an image as diffusers' pipelines take it.

    Returns:
        Of shape (1, 3, height, width), float32 in [0, 1]. The pipeline makes of it exactly what it
        makes of the resized PIL image.
    """
    resized = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(resized))


def to_mask_tensor(mask: Image.Image, width: int, height: int) -> torch.Tensor:
    """Returns a mask as (1, 1, height, width), float32 in [0, 1]; no pixel is mixed."""
    resized = mask.resize((width, height), Image.Resampling.NEAREST)
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(resized))


def to_image(pixels: Any) -> Image.Image:
    """Returns a PIL image, rounded as diffusers does.

    Args:
        pixels: A tensor (3, height, width) or (1, 3, height, width) in [0, 1], on any device, or a
            PIL image, which is returned.
    """
    if isinstance(pixels, Image.Image):
        return pixels
    tensor = torch.as_tensor(pixels).detach()
    if tensor.ndim == 4:
        tensor = tensor[0]
    array = tensor.cpu().permute(1, 2, 0).float().numpy()
    levels = (array * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels)
