"""LoRA adapters of a pipeline: those that stay below, and the one that is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict

from truthgpt_serve.adapter_files import OTHER_BASE
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.kinds.base import ENCODER_LAYERS, Kind
from truthgpt_serve.training.memory.lora import (
    adapter_to_continue,
    adapters_below,
    lora_arguments,
)

ADAPTER = "default"
"""peft's name of the adapter that is trained."""
_BELOW = "below"
_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError)
"""What Diffusers and peft raise for files that are no adapter, or one of another pipeline."""


def add_below(pipeline: Any, cfg: Mapping[str, Any]) -> None:
    """Adds the adapters of `model.adapter` that stay as they are to a pipeline's weights.

    Raises:
        TrainingError: One of them is no adapter of this pipeline.
    """
    for path in adapters_below(cfg):
        _load(pipeline, path, _BELOW)
        parts = [part for part, names in pipeline.get_list_adapters().items() if names]
        pipeline.fuse_lora(components=parts, adapter_names=[_BELOW])
        pipeline.unload_lora_weights()


def add_trained(kind: Kind, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the adapter that is trained, fresh or from `model.adapter`; its weights are in float32.

    Returns:
        The modules that have it, by the names of their parts.

    Raises:
        TrainingError: It does not fit the pipeline.
    """
    parts = {name: getattr(kind.pipeline, name) for name in trained_names(type(kind), cfg)}
    path = adapter_to_continue(cfg)
    if path is not None:
        check_kept(path, read_adapter(kind.pipeline, path), parts)
        _load(kind.pipeline, path, ADAPTER)
    for name, part in parts.items():
        if ADAPTER not in getattr(part, "peft_config", {}):
            add_fresh(part, name, type(kind), cfg["model_optim"]["lora"])
        part.requires_grad_(False)
        for key, weight in part.named_parameters():
            weight.requires_grad_(is_of_adapter(key))
        cast_training_params(part, dtype=torch.float32)
    return parts


def trained_names(kind: type[Kind], cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the parts that are trained."""
    encoders = kind.trained_encoder_names if cfg["training"]["train_text_encoder"] else ()
    return (kind.denoiser_name, *encoders)


def add_fresh(part: Any, name: str, kind: type[Kind], lora: Mapping[str, Any]) -> None:
    """Adds a fresh adapter to a part.

    Raises:
        TrainingError: The denoiser has no layers of the names that are asked for.
    """
    is_denoiser = name == kind.denoiser_name
    usual = kind.lora_layers if is_denoiser else ENCODER_LAYERS
    layers = (lora["target_modules"] if is_denoiser else None) or usual
    settings = LoraConfig(**lora_arguments(lora), target_modules=list(layers))
    try:
        part.add_adapter(settings, adapter_name=ADAPTER)
    except ValueError as error:
        message = f"model_optim.lora.target_modules: {error}"
        raise TrainingError(f"{message} (usual are {', '.join(usual)})") from error


def is_of_adapter(key: str) -> bool:
    """Returns whether a parameter's name is one of the trained adapter."""
    return ".lora_" in key and f".{ADAPTER}" in key


def adapter_weights(part: Any) -> dict[str, Any]:
    """Returns the trained adapter of a part, as peft names its weights."""
    weights: dict[str, Any] = get_peft_model_state_dict(part, adapter_name=ADAPTER)
    return weights


def read_adapter(pipeline: Any, path: str) -> dict[str, Any]:
    """Returns the weights of an adapter by the names that Diffusers gives them.

    Args:
        pipeline: Of the class that it is for, or the class.
        path: A folder or a file of Diffusers or another tool, or a hub name.

    Raises:
        TrainingError: It is none.
    """
    place, more = _place(path)
    try:
        found = pipeline.lora_state_dict(place, **more)
    except _ERRORS as error:
        raise _misfit(path, error) from error
    weights: dict[str, Any] = found[0] if isinstance(found, tuple) else found
    if not weights:
        raise _misfit(path, ValueError("it has no weights"))
    return weights


def check_kept(path: str, weights: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Checks that all of an adapter is trained further; the rest of it would be lost.

    Args:
        path: The adapter's.
        weights: See `read_adapter`.
        parts: Those that are trained, by name.

    Raises:
        TrainingError: It is for other parts too.
    """
    lost = sorted({name.partition(".")[0] for name in weights} - parts.keys())
    if not lost:
        return
    message = f"model.adapter: {path} is for {', '.join(lost)} too, which would be lost"
    encoders = all(name.startswith("text_encoder") for name in lost)
    fix = "write training.train_text_encoder: true" if encoders else OTHER_BASE
    raise TrainingError(f"{message} ({fix}, or model_optim.lora.stack: true)")


def _load(pipeline: Any, path: str, name: str) -> None:
    """Loads all weights of an adapter into the modules of a pipeline."""
    place, more = _place(path)
    try:
        with warnings.catch_warnings():
            # That the modules have one already, where it is loaded beside.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            pipeline.load_lora_weights(place, adapter_name=name, **more)
        loaded = sum(
            len(get_peft_model_state_dict(part, adapter_name=name))
            for part in pipeline.components.values()
            if name in getattr(part, "peft_config", {})
        )
        given = len(read_adapter(pipeline, path))
        if loaded != given:
            raise ValueError(f"{given - loaded} of its {given} weights are for other layers")
    except _ERRORS as error:
        raise _misfit(path, error) from error


def _place(path: str) -> tuple[str, dict[str, str]]:
    """Returns what Diffusers loads: a folder or a hub name, and the file where one is named."""
    file = Path(path)
    return (str(file.parent), {"weight_name": file.name}) if file.is_file() else (path, {})


def _misfit(path: str, error: BaseException) -> TrainingError:
    if isinstance(error, TrainingError):
        return error
    reason = " ".join(str(error).split())[:300]
    message = f"model.adapter: {path} cannot be added to the pipeline: {reason}"
    return TrainingError(f"{message} ({OTHER_BASE})")
