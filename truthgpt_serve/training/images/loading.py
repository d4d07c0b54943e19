"""Loads the pipeline that is trained on: its number formats, quantization and adapters below."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.adapters import add_below
from truthgpt_serve.training.images.kinds.find import kind_of
from truthgpt_serve.training.images.pipelines import load_pipeline
from truthgpt_serve.training.memory.lora import adapters_below
from truthgpt_serve.training.memory.quantization import PLACE, find_quantization, quantizer

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_frozen(
    cfg: Mapping[str, Any], folder: Path, exact: tuple[str, ...], device: torch.device
) -> Any:
    """Returns the pipeline of a folder, on the CPU, with the adapters that stay in its weights.

    Args:
        cfg: The configuration.
        folder: Of the pipeline.
        exact: Names of the parts that are loaded in float32.
        device: Where it is going to be.

    Raises:
        TrainingError: It cannot be loaded, or not be quantized so on this device.
    """
    precision = PRECISIONS[cfg["training"]["mixed_precision"]]
    # What is not trained needs no more than the format that it is computed in; a CPU computes
    # slowly in the short ones.
    frozen = precision if device.type == "cuda" else torch.float32
    check_quantization(cfg, on_cpu=device.type == "cpu")
    quantization, quantized = find_quantization(cfg), {}
    if quantization is not None:
        quantized[kind_of(folder)[0].denoiser_name] = quantizer(diffusers, quantization, precision)
    pipeline = load_pipeline(folder, frozen, exact, quantized)
    add_below(pipeline, cfg)
    return pipeline


def check_quantization(cfg: Mapping[str, Any], *, on_cpu: bool) -> None:
    """Checks that an adapter can be trained on weights that are quantized as they should be.

    Args:
        cfg: The configuration.
        on_cpu: Whether it is known that the model is trained on a CPU.

    Raises:
        TrainingError: It cannot.
    """
    quantization = find_quantization(cfg)
    if quantization is None:
        return
    if adapters_below(cfg):
        fix = "make one model of them first: truthgpt merge"
        raise TrainingError(f"{PLACE}: adapters are not added to quantized weights ({fix})")
    if on_cpu and quantization.package == "bitsandbytes":
        name = cfg["model_optim"]["quantization"]
        message = f"{PLACE}: Diffusers quantizes to {name} on a GPU only"
        raise TrainingError(f"{message} (write torchao-int8, or train on a GPU)")
