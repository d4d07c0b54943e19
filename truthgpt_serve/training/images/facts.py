"""Figures of an image run for its plan, from configuration files alone; loads no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights

from truthgpt_serve.training.generation.images import check_captions
from truthgpt_serve.training.images.adapters import (
    add_fresh,
    check_kept,
    read_adapter,
    trained_names,
)
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.images.kinds.base import Kind, vae_factor
from truthgpt_serve.training.images.kinds.find import kind_of
from truthgpt_serve.training.images.pipelines import create_controlnet
from truthgpt_serve.training.images.prior import find_prior
from truthgpt_serve.training.memory.lora import adapter_to_continue
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.memory.quantization import (
    Quantization,
    find_quantization,
    quantized_note,
)
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
    check_captions(cfg)
    kind, index = kind_of(folder)
    parts = {
        name: _create_empty(folder / name, *index[name])
        for name in (*kind.encoder_names, "vae", kind.denoiser_name)
        if name in index and index[name][0] is not None
    }
    kind.check_sizes(cfg["data"], parts["vae"].config)
    counts = {name: _count(part) for name, part in parts.items()}
    saved, notes = 0, []
    if (quantization := find_quantization(cfg)) is not None:
        notes = [quantized_note(cfg["model_optim"]["quantization"], quantization)]
        saved = _saved_bytes(parts[kind.denoiser_name], quantization)
    main, trained, added = _count_trained(cfg, parts, kind, index)
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
        weight_bytes=total * FLOAT_BYTES - saved,
        activation_bytes=_estimate_activations(cfg, main.config, parts["vae"].config),
        optimizer_bytes=state_bytes(cfg["training"], trained),
        sources=sources,
        notes=notes,
        num_eval_examples=0 if held_out is None else len(held_out),
        size_counts=sizes if len(sizes) > 1 else (),
    )


def _count_trained(
    cfg: dict[str, Any], parts: dict[str, Any], kind: type[Kind], index: dict[str, Any]
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
    names = trained_names(kind, cfg)
    if cfg["model_optim"]["lora"]["enabled"]:
        new = count_adapter({name: parts[name] for name in names}, cfg, kind, index["_class_name"])
        return denoiser, new, new
    return denoiser, sum(_count(parts[name]) for name in names), 0


def _count(part: Any) -> int:
    return sum(one.numel() for one in part.parameters())


def _saved_bytes(denoiser: Any, quantization: Quantization) -> int:
    """Returns the memory that quantized weights of linear layers save."""
    linear = [layer for layer in denoiser.modules() if isinstance(layer, torch.nn.Linear)]
    numbers = sum(layer.weight.numel() for layer in linear)
    return int(numbers * (FLOAT_BYTES - quantization.weight_bytes))


def _create_empty(folder: Path, library: str, name: str) -> Any:
    """Returns a part without memory for its weights."""
    with init_empty_weights():
        if library == "transformers":
            cls = getattr(transformers, name)
            return cls(transformers.AutoConfig.from_pretrained(folder))
        cls = getattr(diffusers, name)
        return cls.from_config(cls.load_config(folder))


def count_adapter(
    parts: dict[str, Any], cfg: dict[str, Any], kind: type[Kind], pipeline_class: str
) -> int:
    """Returns how many weights the trained adapter has.

    Args:
        parts: Empty modules of what is trained, by name.
        cfg: The configuration.
        kind: Of the pipeline.
        pipeline_class: Name of its class.

    Raises:
        TrainingError: It does not fit the pipeline.
    """
    path, count = adapter_to_continue(cfg), 0
    saved: set[str] = set()
    if path is not None:
        weights = read_adapter(getattr(diffusers, pipeline_class), path)
        check_kept(path, weights, parts)
        saved = {name.partition(".")[0] for name in weights}
        count = sum(one.numel() for one in weights.values())
    with init_empty_weights():
        for name in parts.keys() - saved:
            before = _count(parts[name])
            add_fresh(parts[name], name, kind, cfg["model_optim"]["lora"])
            count += _count(parts[name]) - before
    return count


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
