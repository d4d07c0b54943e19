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
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.images.kinds import KINDS, Kind, vae_factor
from truthgpt_serve.training.images.pipelines import INDEX, create_controlnet
from truthgpt_serve.training.images.prior import find_prior
from truthgpt_serve.training.memory.lora import lora_arguments
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.plan import FLOAT_BYTES, Facts

ACTIVATIONS = 40
"""Rough number of feature maps of the first level that a forward pass keeps for the backward."""


def read_facts(cfg: dict[str, Any], folder: Path, run: Path) -> Facts:
    """Returns what the plan says.

    Args:
        cfg: The configuration.
        folder: Of the pipeline.
        run: The run's folder.

    Raises:
        TrainingError: The pipeline cannot be trained, or the data cannot be read.
    """
    kind, index = kind_of(folder)
    parts = {
        name: _create_empty(folder / name, *index[name])
        for name in (*kind.encoder_names, "vae", kind.denoiser_name)
        if name in index and index[name][0] is not None
    }
    kind.check_sizes(cfg["data"], parts["vae"].config)
    counts = {name: _count(part) for name, part in parts.items()}
    main, trained, added = _count_trained(cfg, parts, kind)
    total = sum(counts.values()) + added
    sources: list[str] = []
    images, held_out = load_images(cfg, sources)
    if cfg["training"]["prior"] is not None:
        sources.append(find_prior(cfg, run).describe(cfg["training"]["prior"]))
    sizes = images.shapes.counts()
    return Facts(
        units="images",
        num_examples=len(images),
        num_units=len(images),
        num_parameters=total,
        num_trainable=trained,
        weight_bytes=total * FLOAT_BYTES,
        activation_bytes=_estimate_activations(cfg, main.config, parts["vae"].config),
        optimizer_bytes=state_bytes(cfg["training"], trained),
        sources=sources,
        num_eval_examples=0 if held_out is None else len(held_out),
        size_counts=sizes if len(sizes) > 1 else (),
    )


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


def _count_trained(
    cfg: dict[str, Any], parts: dict[str, Any], kind: type[Kind]
) -> tuple[Any, int, int]:
    """Returns the module that computes most, how many weights are trained, how many are new."""
    training, denoiser = cfg["training"], parts[kind.denoiser_name]
    component = training["component"]
    if component == "vae":
        return parts["vae"], _count(parts["vae"]), 0
    if component == "controlnet":
        with init_empty_weights():
            new = _count(create_controlnet(denoiser, parts["vae"].config, load_weights=False))
        return denoiser, new, new
    if component == "textual_inversion":
        vectors = training["textual_inversion"]["num_vectors"]
        encoders = [parts[name] for name in kind.encoder_names]
        new = vectors * sum(one.get_input_embeddings().embedding_dim for one in encoders)
        return denoiser, new, new
    if cfg["model_optim"]["lora"]["enabled"]:
        new = _count_adapter(denoiser, cfg["model_optim"]["lora"], kind)
        return denoiser, new, new
    names = [kind.denoiser_name]
    names += kind.trained_encoder_names if training["train_text_encoder"] else ()
    return denoiser, sum(_count(parts[name]) for name in names), 0


def _count(part: Any) -> int:
    return sum(one.numel() for one in part.parameters())


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
    before = _count(denoiser)
    try:
        with init_empty_weights():
            denoiser.add_adapter(LoraConfig(**lora_arguments(lora), target_modules=list(layers)))
    except ValueError as error:
        message = f"model_optim.lora.target_modules: {error}"
        raise TrainingError(f"{message} (usual are {', '.join(kind.lora_layers)})") from error
    return _count(denoiser) - before


def _estimate_activations(cfg: dict[str, Any], main: Any, vae: Any) -> int:
    edge = cfg["data"]["resolution"]
    if cfg["training"]["component"] != "vae":
        edge //= vae_factor(vae)
    width = main.get("block_out_channels", [main.get("caption_projection_dim", 64)])[0]
    kept = 4 if cfg["model_optim"]["gradient_checkpointing"] else 1
    maps = ACTIVATIONS * width * edge**2 * cfg["training"]["train_batch_size"]
    if cfg["training"]["prior"] is not None:
        maps *= 2  # as many images of the class
    return int(maps * FLOAT_BYTES / kept)
