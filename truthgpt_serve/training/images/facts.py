"""Figures of an image run for its plan, from configuration files alone; loads no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import transformers
from accelerate import init_empty_weights
from peft import LoraConfig

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.rows import load_images
from truthgpt_serve.training.images.kinds import KINDS, Kind
from truthgpt_serve.training.images.pipelines import INDEX
from truthgpt_serve.training.memory.lora import lora_arguments
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.plan import FLOAT_BYTES, Facts

ACTIVATIONS = 40
"""Rough number of feature maps of the first level that a forward pass keeps for the backward."""


def read_facts(cfg: dict[str, Any], folder: Path) -> Facts:
    """Returns what the plan says.

    Raises:
        TrainingError: The pipeline cannot be trained, or the data cannot be read.
    """
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    kind = KINDS.get(index["_class_name"])
    if kind is None:
        message = f"model.name_or_path: {index['_class_name']} cannot be trained"
        raise TrainingError(f"{message} (these can: {', '.join(KINDS)})")
    training = cfg["training"]
    names: tuple[str, ...] = ("vae",) if training["component"] == "vae" else (kind.denoiser_name,)
    if training["train_text_encoder"]:
        names += kind.trained_encoder_names
    parts = {
        name: _create_empty(folder / name, *index[name])
        for name in (*kind.encoder_names, "vae", kind.denoiser_name)
        if name in index and index[name][0] is not None
    }
    counts = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}
    trained = sum(counts[name] for name in names)
    total = sum(counts.values())
    if cfg["model_optim"]["lora"]["enabled"]:
        trained = _count_adapter(parts[kind.denoiser_name], cfg["model_optim"]["lora"], kind)
        total += trained
    sources: list[str] = []
    images, held_out = load_images(cfg, sources)
    main = parts[names[0]].config
    return Facts(
        units="images",
        num_examples=len(images),
        num_units=len(images),
        num_parameters=total,
        num_trainable=trained,
        weight_bytes=total * FLOAT_BYTES,
        activation_bytes=_estimate_activations(cfg, main, parts["vae"].config),
        optimizer_bytes=state_bytes(training, trained),
        sources=sources,
        num_eval_examples=0 if held_out is None else len(held_out),
    )


def _create_empty(folder: Path, library: str, name: str) -> Any:
    """Returns a part without memory for its weights."""
    with init_empty_weights():
        if library == "transformers":
            cls = getattr(transformers, name)
            return cls(transformers.AutoConfig.from_pretrained(folder))
        cls = getattr(diffusers, name)
        return cls.from_config(cls.load_config(folder))


def _count_adapter(denoiser: Any, lora: dict[str, Any], kind: type[Kind]) -> int:
    layers = lora["target_modules"] or kind.lora_layers
    before: int = sum(one.numel() for one in denoiser.parameters())
    try:
        with init_empty_weights():
            denoiser.add_adapter(LoraConfig(**lora_arguments(lora), target_modules=list(layers)))
    except ValueError as error:
        message = f"model_optim.lora.target_modules: {error}"
        raise TrainingError(f"{message} (usual are {', '.join(kind.lora_layers)})") from error
    after: int = sum(one.numel() for one in denoiser.parameters())
    return after - before


def _estimate_activations(cfg: dict[str, Any], main: Any, vae: Any) -> int:
    edge = cfg["data"]["resolution"]
    if cfg["training"]["component"] == "denoiser":
        edge //= 2 ** (len(vae.block_out_channels) - 1)
    width = main.get("block_out_channels", [main.get("caption_projection_dim", 64)])[0]
    kept = 4 if cfg["model_optim"]["gradient_checkpointing"] else 1
    maps = ACTIVATIONS * width * edge**2 * cfg["training"]["train_batch_size"]
    return int(maps * FLOAT_BYTES / kept)
