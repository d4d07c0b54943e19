"""Adds a tiny ControlNet to a tiny pipeline; does not know how either is made."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)

from tests.support.tiny_images import denoisers

CONTROLNET_SEED = 4


def with_controlnet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Returns the pipeline's ControlNet version, which shares all its modules.

    Raises:
        ValueError: The pipeline is neither SD's nor SDXL's for text to image.
    """
    parts = pipeline.components
    if type(pipeline) is StableDiffusionPipeline:
        controlnet = _create(pipeline, xl=False)
        return StableDiffusionControlNetPipeline(
            **parts, controlnet=controlnet, requires_safety_checker=False
        )
    if type(pipeline) is StableDiffusionXLPipeline:
        controlnet = _create(pipeline, xl=True)
        return StableDiffusionXLControlNetPipeline(
            **parts, controlnet=controlnet, add_watermarker=False
        )
    raise ValueError(f"there is no tiny ControlNet for {type(pipeline).__name__}")


def _create(pipeline: DiffusionPipeline, *, xl: bool) -> Any:
    controlnet = denoisers.create_controlnet(CONTROLNET_SEED, xl=xl)
    return controlnet if controlnet.dtype == pipeline.dtype else controlnet.to(pipeline.dtype)
