"""What a pipeline is, as far as requests need to know: sizes, parameters, kinds of guidance.

Reads configurations of loaded pipelines; runs none of them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT_TO_IMAGE = "text-to-image"
IMAGE_TO_IMAGE = "image-to-image"
INPAINTING = "inpainting"
CONTROL = "control-"
"""Put before a name: the same with a ControlNet."""

SIZE_STEP = 8
"""Diffusers' pipelines refuse other edges, or round them, whatever their VAE."""
FALLBACK_EDGE = 1024
BINNED_SAMPLE_SIZES = {"PixArt": (32, 64, 128, 256), "Sana": (16, 32, 64, 128)}
"""Latent edges for which diffusers has tables of trained sizes, by how the pipeline's name begins;
its call fails for others."""
SEVERAL_IMAGES = frozenset({"Flux2Pipeline", "Flux2KleinPipeline", "QwenImageEditPlusPipeline"})
"""Pipelines that read several images as one request; for the others a list is a batch."""


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """One pipeline of a model.

    Attributes:
        name: `text-to-image`, `image-to-image` or `inpainting`, possibly behind `control-`.
        defaults: Default value of each parameter of the pipeline's `__call__`.
        size_multiple: Width and height must be multiples of it, in pixels.
        patch: Edge in pixels of what becomes one latent patch.
        width: Default width in pixels.
        height: Default height in pixels.
        guidance: The parameter that `guidance_scale` means, or None if it has no effect.
        no_negative: Why there can be no negative prompt; empty if there can.
        negative_needed: Whether guidance takes effect only together with a negative prompt.
        several_images: Whether one request may carry several images.
        fixed: Arguments that every call needs.
    """

    name: str
    defaults: Mapping[str, Any]
    size_multiple: int
    patch: int
    width: int
    height: int
    guidance: str | None
    no_negative: str
    negative_needed: bool
    several_images: bool
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, parameter: str) -> bool:
        """Returns whether the pipeline's call has this parameter."""
        return parameter in self.defaults

    @property
    def starts_from_image(self) -> bool:
        """Whether the image is noised and denoised again, instead of being looked at."""
        return self.takes("strength")


def denoiser_of(pipeline: Any) -> Any:
    """Returns the module that runs once in each denoising step, or None."""
    unet = getattr(pipeline, "unet", None)
    return unet if unet is not None else getattr(pipeline, "transformer", None)


def pipeline_name(pipeline: Any) -> str:
    """Returns what a pipeline does with its inputs, by the parameters of its call."""
    parameters = call_defaults(pipeline)
    if "mask_image" in parameters:
        return INPAINTING
    optional = type(pipeline).__name__.startswith("Flux2")
    return IMAGE_TO_IMAGE if "image" in parameters and not optional else TEXT_TO_IMAGE


def call_defaults(pipeline: Any) -> dict[str, Any]:
    """Returns the parameters of the pipeline's call with their defaults."""
    signature = inspect.signature(type(pipeline).__call__)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter.default
        for name, parameter in list(signature.parameters.items())[1:]
        if parameter.kind in named
    }


def read_info(pipeline: Any, name: str) -> PipelineInfo:
    """Returns the info of a loaded pipeline."""
    denoiser = denoiser_of(pipeline)
    config: Mapping[str, Any] = denoiser.config if denoiser is not None else {}
    defaults = call_defaults(pipeline)
    multiple, patch = _grid(pipeline, config)
    width, height = _default_size(pipeline, config, defaults, multiple)
    guidance, no_negative, needed = _guidance(config, defaults)
    fixed = {}
    if defaults.get("use_resolution_binning") and not _has_bins(pipeline, config):
        fixed["use_resolution_binning"] = False
    return PipelineInfo(
        name=name,
        defaults=defaults,
        size_multiple=multiple,
        patch=patch,
        width=width,
        height=height,
        guidance=guidance,
        no_negative=no_negative,
        negative_needed=needed,
        several_images=type(pipeline).__name__ in SEVERAL_IMAGES,
        fixed=fixed,
    )


def _has_bins(pipeline: Any, config: Mapping[str, Any]) -> bool:
    kind = type(pipeline).__name__
    sizes = [edges for name, edges in BINNED_SAMPLE_SIZES.items() if kind.startswith(name)]
    return not sizes or config.get("sample_size") in sizes[0]


def _grid(pipeline: Any, config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns what edges must be multiples of, and the edge of a latent patch, in pixels."""
    scale = int(getattr(pipeline, "vae_scale_factor", SIZE_STEP))
    processor = getattr(pipeline, "image_processor", None)
    step = int(processor.config.get("vae_scale_factor", scale)) if processor is not None else scale
    patch = config.get("patch_size") or config.get("all_patch_size") or 1
    patch = int(patch[0] if isinstance(patch, (list, tuple)) else patch)
    if getattr(pipeline, "unet", None) is not None:
        patch = 1
    return math.lcm(SIZE_STEP, step, scale * patch), max(step, scale * patch)


def _default_size(
    pipeline: Any, config: Mapping[str, Any], defaults: Mapping[str, Any], multiple: int
) -> tuple[int, int]:
    width, height = defaults.get("width"), defaults.get("height")
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    sample = getattr(pipeline, "default_sample_size", None) or config.get("sample_size")
    scale = int(getattr(pipeline, "vae_scale_factor", SIZE_STEP))
    if isinstance(sample, (list, tuple)):
        height, width = (int(edge) * scale for edge in sample[-2:])
    else:
        width = height = int(sample) * scale if sample else FALLBACK_EDGE
    return max(multiple, width - width % multiple), max(multiple, height - height % multiple)


def _guidance(
    config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[str | None, str, bool]:
    """Returns the parameter for guidance, why no negative prompt, and whether it needs one.

    A pipeline with both `guidance_scale` and `true_cfg_scale` guides in two ways: the first is an
    input of a distilled denoiser, the second compares with a negative prompt.
    """
    takes_negative = "negative_prompt" in defaults
    if "true_cfg_scale" in defaults:
        if config.get("guidance_embeds"):
            return "guidance_scale", "its guidance is distilled into the denoiser", False
        if defaults.get("guidance_scale") is None:
            return "true_cfg_scale", "", True
        return None, "its guidance is distilled into the denoiser", False
    guidance = "guidance_scale" if "guidance_scale" in defaults else None
    if config.get("time_cond_proj_dim") is not None:
        return guidance, "its guidance is distilled into the denoiser", False
    if not takes_negative or guidance is None:
        return guidance, "its pipeline does not take one", False
    return guidance, "", False
