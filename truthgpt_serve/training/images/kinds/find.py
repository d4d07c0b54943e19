"""Finds the kind of a pipeline, by the name of its class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.kinds.base import Kind
from truthgpt_serve.training.images.kinds.flow import FluxKind, SD3Kind
from truthgpt_serve.training.images.kinds.xl import XLKind
from truthgpt_serve.training.images.pipelines import INDEX

KINDS: dict[str, type[Kind]] = {
    "StableDiffusionPipeline": Kind,
    "StableDiffusionXLPipeline": XLKind,
    "StableDiffusion3Pipeline": SD3Kind,
    "FluxPipeline": FluxKind,
}
"""By the name of the pipeline's class."""


def create_kind(pipeline: Any, data: Mapping[str, Any]) -> Kind:
    """Returns the pipeline's kind.

    Args:
        pipeline: A pipeline of Diffusers.
        data: The section `data` of the configuration.

    Raises:
        TrainingError: Pipelines of this class cannot be trained, or not at these sizes.
    """
    name = type(pipeline).__name__
    vae = type(getattr(pipeline, "vae", None))
    if name not in KINDS or not issubclass(vae, AutoencoderKL):
        message = f"model.name_or_path: {name} with {vae.__name__} cannot be trained"
        raise TrainingError(f"{message} (with AutoencoderKL these can: {', '.join(KINDS)})")
    return KINDS[name](pipeline, data)


def kind_of(folder: Path) -> tuple[type[Kind], dict[str, Any]]:
    """Returns the kind of a pipeline's folder, and its index of parts.

    Raises:
        TrainingError: Pipelines of this class cannot be trained.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    kind = KINDS.get(index["_class_name"])
    if kind is None:
        message = f"model.name_or_path: {index['_class_name']} cannot be trained"
        raise TrainingError(f"{message} (these can: {', '.join(KINDS)})")
    return kind, index
