"""Pipelines for other tasks over the modules of a tiny one; does not know how that one is made."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, DiffusionPipeline

from tests.support.tiny_images.controlnets import with_controlnet
from tests.support.tiny_images.pipelines import create_pipeline

VARIANTS: Mapping[str, Any] = MappingProxyType(
    {
        "image-to-image": AutoPipelineForImage2Image,
        "inpainting": AutoPipelineForInpainting,
        "controlnet": None,
    }
)
"""What `create_variant` can make, and of which maker of Diffusers."""


def create_variant(pipeline: DiffusionPipeline, task: str) -> DiffusionPipeline:
    """Returns the pipeline for a task of VARIANTS that shares all its modules with the given one.

    The one for `controlnet` adds a ControlNet, whose weights are always the same.

    Raises:
        ValueError: Diffusers has no such pipeline for these weights, or the task is another.
    """
    if task not in VARIANTS:
        raise ValueError(f"no variant {task!r}: there are {', '.join(VARIANTS)}")
    if task == "controlnet":
        with torch.random.fork_rng(devices=[]):
            variant = with_controlnet(pipeline)
    else:
        # Without a dtype, from_pipe converts the shared modules to float32.
        variant = VARIANTS[task].from_pipe(pipeline, dtype=pipeline.dtype)
    variant.set_progress_bar_config(disable=True)
    return variant


def create_family(kind: str, seed: int = 0) -> dict[str, DiffusionPipeline]:
    """Returns `text-to-image` and every variant that Diffusers has for it, over the same modules.

    Raises:
        ValueError: `kind` is not one of KINDS.
    """
    pipeline = create_pipeline(kind, seed)
    family = {"text-to-image": pipeline}
    for task in VARIANTS:
        try:
            variant = create_variant(pipeline, task)
        except ValueError:
            continue
        if type(variant) is not type(pipeline):
            family[task] = variant
    return family
