"""Random LoRA adapters for the tiny pipelines, in the file layout of Diffusers.

Does not load them: `pipeline.load_lora_weights(folder)` does.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import nn

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which Diffusers looks for an adapter in a folder."""

# Attention projections, as the denoisers of Diffusers name them.
_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")


def create_lora(
    pipeline: DiffusionPipeline, seed: int, rank: int = 4, strength: float = 0.5
) -> dict[str, Any]:
    """Returns the weights of an adapter for the pipeline's denoiser, to load or to save.

    `strength` is about the size of its effect on a projection's output, relative to the output.

    Raises:
        ValueError: The pipeline class cannot load adapters, or has no denoiser with projections.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise ValueError(f"{type(pipeline).__name__} cannot load LoRA adapters")
    prefix = "unet" if "unet" in pipeline.components else "transformer"
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for path, module in getattr(pipeline, prefix).named_modules():
        # Where another adapter is loaded, the projection itself is one level further down.
        name = path.removesuffix(".base_layer")
        if not isinstance(module, nn.Linear) or not name.endswith(_TARGETS):
            continue
        down = torch.randn(rank, module.in_features, generator=generator)
        up = torch.randn(module.out_features, rank, generator=generator)
        weights[f"{prefix}.{name}.lora_A.weight"] = down / math.sqrt(module.in_features)
        weights[f"{prefix}.{name}.lora_B.weight"] = up * (strength / math.sqrt(rank))
    if not weights:
        raise ValueError(f"the {prefix} of {type(pipeline).__name__} has no attention projections")
    return weights


def save_lora(pipeline: DiffusionPipeline, folder: Path, seed: int, rank: int = 4) -> Path:
    """Writes `create_lora`'s adapter into the folder; returns the folder.

    Raises:
        OSError: The folder cannot be written.
        ValueError: As for `create_lora`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(create_lora(pipeline, seed, rank), str(folder / LORA_FILE), metadata={"format": "pt"})
    return folder
