"""Makes a pipeline for each role out of one pipeline's modules; loads nothing."""

from __future__ import annotations

from typing import Any

import diffusers

from deployments.hf_diffusers.pipelines.info import (
    CONTROL,
    IMAGE_TO_IMAGE,
    INPAINTING,
    TEXT_TO_IMAGE,
    denoiser_of,
    role_of,
)
from truthgpt_serve.errors import bad_setting

ROLES: dict[str, Any] = {
    TEXT_TO_IMAGE: diffusers.AutoPipelineForText2Image,
    IMAGE_TO_IMAGE: diffusers.AutoPipelineForImage2Image,
    INPAINTING: diffusers.AutoPipelineForInpainting,
}
INPAINTING_CHANNELS = 9
"""A UNet with so many input channels takes the mask and the masked image: it can only inpaint."""


def make_roles(base: Any, controlnet: Any = None) -> dict[str, Any]:
    """Returns a pipeline for each role, on the modules of `base`.

    Diffusers knows which class does what for an architecture; roles it has none for are left out.

    Args:
        base: The pipeline as the checkpoint names it.
        controlnet: A ControlNet for it; by default the checkpoint's own, if it has one.

    Raises:
        ConfigError: The architecture has no pipeline with a ControlNet.
    """
    own = getattr(base, "controlnet", None)
    controlnet = controlnet if controlnet is not None else own
    roles = _plain_roles(base, {} if own is None else {"controlnet": None})
    if controlnet is None:
        return roles
    control = {
        CONTROL + role: made
        for role, auto in ROLES.items()
        if (made := _from_pipe(auto, base, controlnet=controlnet)) is not None
    }
    if not control:
        message = f"{type(base).__name__} has no pipeline with a ControlNet"
        raise bad_setting("serving.engine.controlnet", message, "remove it")
    return roles | control


def _plain_roles(base: Any, without: dict[str, None]) -> dict[str, Any]:
    roles = {} if without else {role_of(base): base}
    if denoiser_channels(base) == INPAINTING_CHANNELS:
        return roles
    for role, auto in ROLES.items():
        if role not in roles and (made := _from_pipe(auto, base, **without)) is not None:
            roles[role] = base if type(made) is type(base) else made
    return roles


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
