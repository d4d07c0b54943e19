"""Decodes the latents of an unfinished image, as the stock pipelines do at their end.

The VAE of the given pipeline may be a proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Size = tuple[int, int] | None
"""Height and width in pixels as asked for; None where the request does not say."""

Preview = Callable[[Any, torch.Tensor, Size], torch.Tensor | None]
"""Takes the pipeline, its latents and the size; returns (3, height, width) float32 in [0, 1] on the
CPU, None if these latents cannot be shown."""

Denormalize = Callable[[Any, torch.Tensor, Size], torch.Tensor | None]


def find_preview(pipeline: Any) -> Preview | None:
    """Returns how to decode this pipeline's latents; None for an unknown family."""
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # under torch.compile
    names = (cls.__name__ for cls in type(denoiser).__mro__)
    denormalize = next((FAMILIES[name] for name in names if name in FAMILIES), None)
    if denormalize is None or not hasattr(pipeline, "vae"):
        return None
    if not hasattr(pipeline, "image_processor"):
        return None

    def preview(clone: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
        scaled = denormalize(clone, latents[:1], size)
        if scaled is None:
            return None
        image = clone.vae.decode(scaled.to(clone.vae.dtype), return_dict=False)[0]
        if image.ndim == 5:  # an image VAE made from a video one: (batch, channels, frames, ...)
            image = image[:, :, 0]
        shown = clone.image_processor.postprocess(image, output_type="pt")
        return shown[0].float().cpu()

    return preview


def _scaled(pipeline: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
    """SD, SDXL, SD3, Z-Image, Sana, PixArt: a factor, and a shift or a mean and deviation."""
    config = pipeline.vae.config
    mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and deviation is not None:
        return latents * _channels(deviation, latents) / config.scaling_factor + _channels(
            mean, latents
        )
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def _flux(pipeline: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
    grid = _unpacked_size(pipeline, latents, size)
    if grid is None:
        return None
    unpacked = pipeline._unpack_latents(latents, *grid, pipeline.vae_scale_factor)
    return _scaled(pipeline, unpacked, size)


def _flux2(pipeline: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
    grid = _unpacked_size(pipeline, latents, size)
    if grid is None:
        return None
    height, width = (side // (2 * pipeline.vae_scale_factor) for side in grid)
    patches = latents.transpose(1, 2).reshape(1, latents.shape[2], height, width)
    norm = pipeline.vae.bn
    mean = norm.running_mean.view(1, -1, 1, 1).to(patches.device, patches.dtype)
    variance = norm.running_var.view(1, -1, 1, 1) + pipeline.vae.config.batch_norm_eps
    patches = patches * variance.sqrt().to(patches.device, patches.dtype) + mean
    return torch.nn.functional.pixel_shuffle(patches, 2)


def _qwen_image(pipeline: Any, latents: torch.Tensor, size: Size) -> torch.Tensor | None:
    grid = _unpacked_size(pipeline, latents, size)
    if grid is None:
        return None
    unpacked = pipeline._unpack_latents(latents, *grid, pipeline.vae_scale_factor)
    config = pipeline.vae.config
    return unpacked * _channels(config.latents_std, unpacked) + _channels(
        config.latents_mean, unpacked
    )


def _channels(values: Any, latents: torch.Tensor) -> torch.Tensor:
    shape = (1, len(values)) + (1,) * (latents.ndim - 2)
    return torch.tensor(list(values), dtype=latents.dtype, device=latents.device).view(shape)


def _unpacked_size(pipeline: Any, latents: torch.Tensor, size: Size) -> tuple[int, int] | None:
    """Returns height and width that the packed latents of shape (1, patches, channels) are of.

    Some pipelines choose a size themselves. A square is then assumed, if there are as many patches.
    """
    unit = 2 * pipeline.vae_scale_factor
    patches = latents.shape[1]
    if size is not None and (size[0] // unit) * (size[1] // unit) == patches:
        return size
    side = round(patches**0.5)
    return (side * unit, side * unit) if side * side == patches else None


FAMILIES: Mapping[str, Denormalize] = {
    "UNet2DConditionModel": _scaled,
    "SD3Transformer2DModel": _scaled,
    "ZImageTransformer2DModel": _scaled,
    "SanaTransformer2DModel": _scaled,
    "PixArtTransformer2DModel": _scaled,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "QwenImageTransformer2DModel": _qwen_image,
}
"""By class of the denoiser: text-to-image, image-to-image, inpainting and ControlNet share it."""
