"""Makes all pipelines that one pipeline's modules can be: text-to-image, inpainting, ..."""

from __future__ import annotations

from typing import Any

import diffusers

from deployments.hf_diffusers.pipelines.info import (
    CONTROL,
    IMAGE_TO_IMAGE,
    INPAINTING,
    TEXT_TO_IMAGE,
    denoiser_of,
    pipeline_name,
)
from truthgpt_serve.errors import bad_setting

AUTO_PIPELINES: dict[str, Any] = {
    TEXT_TO_IMAGE: diffusers.AutoPipelineForText2Image,
    IMAGE_TO_IMAGE: diffusers.AutoPipelineForImage2Image,
    INPAINTING: diffusers.AutoPipelineForInpainting,
}
INPAINTING_CHANNELS = 9
"""A UNet with so many input channels takes the mask and the masked image: it can only inpaint."""


def derive_pipelines(base: Any, controlnet: Any = None) -> dict[str, Any]:
    """Returns the pipelines on the modules of `base`, by name.

    Diffusers knows which class does what for an architecture; what it has none for is left out.

    Args:
        base: The pipeline as the checkpoint names it.
        controlnet: A ControlNet for it; by default the checkpoint's own, if it has one.

    Raises:
        ConfigError: The architecture has no pipeline with a ControlNet.
    """
    own = getattr(base, "controlnet", None)
    controlnet = controlnet if controlnet is not None else own
    pipelines = _plain_pipelines(base, {} if own is None else {"controlnet": None})
    if controlnet is None:
        return pipelines
    control = {
        CONTROL + name: made
        for name, auto in AUTO_PIPELINES.items()
        if (made := _from_pipe(auto, base, controlnet=controlnet)) is not None
    }
    if not control:
        message = f"{type(base).__name__} has no pipeline with a ControlNet"
        raise bad_setting("serving.engine.controlnet", message, "remove it")
    return pipelines | control


def _plain_pipelines(base: Any, without: dict[str, None]) -> dict[str, Any]:
    pipelines = {} if without else {pipeline_name(base): base}
    if denoiser_channels(base) == INPAINTING_CHANNELS:
        return pipelines
    for name, auto in AUTO_PIPELINES.items():
        if name not in pipelines and (made := _from_pipe(auto, base, **without)) is not None:
            pipelines[name] = base if type(made) is type(base) else made
    return pipelines


def denoiser_channels(pipeline: Any) -> int:
    """Returns the input channels of a UNet, 0 for another denoiser."""
    if getattr(pipeline, "unet", None) is None:
        return 0
    return int(denoiser_of(pipeline).config.get("in_channels", 0))


def _from_pipe(auto: Any, base: Any, **components: Any) -> Any:
    """Makes a pipeline by diffusers' table; it neither copies modules nor changes their type."""
    try:
        made = auto.from_pipe(base, **components)
    except ValueError:  # the architecture has no such pipeline
        return None
    made.set_progress_bar_config(disable=True)
    return made
