"""Loads a text model and its tokenizer for training, and measures one without loading it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoTokenizer, set_seed

from truthgpt_serve.config.training.methods import keeps_copy, method_of
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.memory.lora import (
    adapter_to_continue,
    adapters_below,
    lora_arguments,
)
from truthgpt_serve.training.memory.quantization import (
    Quantization,
    find_quantization,
    quantized_note,
)
from truthgpt_serve.training.plan import FLOAT_BYTES
from truthgpt_serve.training.text.adapters import saved_config, with_adapters
from truthgpt_serve.training.text.heads import adapter_task, model_class, set_head
from truthgpt_serve.training.text.quantized import (
    prepare_quantized,
    quantized_options,
    weight_bytes,
)
from truthgpt_serve.training.text.trainer.sharding import gathered_bytes, leave_to_us

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
USUAL_LAYERS = "all-linear"
"""peft's word for every linear layer but the output head."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What a model takes, for the plan; see `Facts`."""

    num_parameters: int
    num_trainable: int
    weight_bytes: int
    activation_bytes: int
    gathered_bytes: int = 0
    notes: Sequence[str] = field(default_factory=tuple)


def load_tokenizer(cfg: Mapping[str, Any]) -> Any:
    """Returns the model's tokenizer.

    Raises:
        TrainingError: It has none.
    """
    name = cfg["model"]["name_or_path"]
    try:
        return AutoTokenizer.from_pretrained(name, revision=cfg["model"]["revision"])
    except (OSError, ValueError, KeyError) as error:
        message = str(error).strip().splitlines()[0]
        raise TrainingError(f"model.name_or_path {name!r}: no tokenizer: {message}") from error


def load_config(cfg: Mapping[str, Any]) -> Any:
    """Returns the model's own configuration.

    Raises:
        TrainingError: It has none, or is of an unknown kind.
    """
    name = cfg["model"]["name_or_path"]
    try:
        return AutoConfig.from_pretrained(name, revision=cfg["model"]["revision"])
    except (OSError, ValueError, KeyError) as error:
        message = str(error).strip().splitlines()[0]
        raise TrainingError(f"model.name_or_path {name!r} cannot be trained: {message}") from error


def has_weights(cfg: Mapping[str, Any]) -> bool:
    """Returns whether there are weights; a folder with a configuration alone starts from nothing.

    A hub name is taken to have some.
    """
    folder = Path(cfg["model"]["name_or_path"])
    return not folder.is_dir() or any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS)


def is_on_cpu(cfg: Mapping[str, Any]) -> bool:
    """Returns whether this worker computes on CPU: told so, or for want of a GPU."""
    given = os.environ.get("ACCELERATE_TORCH_DEVICE", "")
    return cfg["hardware"]["device"] == "cpu" or given == "cpu" or not torch.cuda.is_available()


def training_dtype(cfg: Mapping[str, Any], stored: torch.dtype) -> torch.dtype:
    """Returns the number format of the weights while training.

    What is trained is in float32, because steps of a usual learning rate are lost in the rounding
    of 16 bits. Weights that an adapter only reads are as they will be served.
    """
    return saved_dtype(cfg, stored) if cfg["model_optim"]["lora"]["enabled"] else torch.float32


def saved_dtype(cfg: Mapping[str, Any], stored: torch.dtype) -> torch.dtype:
    """Returns the number format of the result: the stored one, or `model_optim.dtype`."""
    dtype = cfg["model_optim"]["dtype"]
    return stored if dtype == "auto" else DTYPES[dtype]


def stored_dtype(config: Any) -> torch.dtype:
    """Returns the number format that a model's configuration says its weights are in."""
    dtype = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def load_base_model(cfg: Mapping[str, Any], labels: Sequence[str] = ()) -> tuple[Any, torch.dtype]:
    """Returns the model to train, without a fresh adapter, and the number format of the result.

    The adapters of `model.adapter` are in it: those that stay in its weights, the one that is
    trained further on top.

    Args:
        cfg: The whole configuration.
        labels: Names of the classes that it is to tell apart.

    Raises:
        TrainingError: It cannot be loaded.
    """
    quantization = _find_quantization(cfg)
    config = load_config(cfg)
    set_head(cfg, config, labels)
    stored = stored_dtype(config)
    set_seed(cfg["seed"])
    model = _create(cfg, config, training_dtype(cfg, stored), quantization)
    if cfg["training"]["fsdp"] is not None:
        leave_to_us(model)
    return with_adapters(model, cfg), saved_dtype(cfg, stored)


def load_model(cfg: Mapping[str, Any], labels: Sequence[str] = ()) -> tuple[Any, torch.dtype]:
    """Returns the same, with a fresh adapter if `model_optim.lora` says so.

    Raises:
        TrainingError: It cannot be loaded or cannot have this adapter.
    """
    model, dtype = load_base_model(cfg, labels)
    if cfg["model_optim"]["lora"]["enabled"] and adapter_to_continue(cfg) is None:
        model = add_adapter(model, cfg)
    return model, dtype


def _find_quantization(cfg: Mapping[str, Any]) -> Quantization | None:
    quantization = find_quantization(cfg)
    place = "model_optim.quantization"
    if quantization is not None and adapters_below(cfg):
        fix = "make one model of them first: truthgpt merge"
        raise TrainingError(f"{place}: adapters are not added to quantized weights ({fix})")
    if quantization is not None and not has_weights(cfg):
        fix = "remove it, or name a model that has some"
        raise TrainingError(f"{place}: the folder has no weights to quantize ({fix})")
    return quantization


def _create(
    cfg: Mapping[str, Any], config: Any, dtype: torch.dtype, quantization: Quantization | None
) -> Any:
    name, attention = cfg["model"]["name_or_path"], cfg["model_optim"]["attention"]
    more = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        if not has_weights(cfg):
            return model_class(cfg).from_config(config, dtype=dtype, **more)
        more |= quantized_options(cfg, quantization, on_cpu=is_on_cpu(cfg))
        model = model_class(cfg).from_pretrained(
            name,
            config=config,
            revision=cfg["model"]["revision"],
            dtype=dtype,
            # A head of other classes than before begins anew.
            ignore_mismatched_sizes=method_of(cfg).head in ("score", "classes"),
            **more,
        )
        return model if quantization is None else prepare_quantized(model)
    except (OSError, ValueError, ImportError, KeyError) as error:
        message = str(error).strip().splitlines()[0]
        raise TrainingError(f"model.name_or_path {name!r} cannot be trained: {message}") from error


def adapter_config(cfg: Mapping[str, Any]) -> LoraConfig | None:
    """Returns peft's configuration of a fresh adapter; None where one is trained further."""
    return None if adapter_to_continue(cfg) is not None else fresh_config(cfg)


def fresh_config(cfg: Mapping[str, Any]) -> LoraConfig:
    """Returns peft's configuration of the adapter that `model_optim.lora` describes."""
    lora = cfg["model_optim"]["lora"]
    return LoraConfig(
        **lora_arguments(lora),
        target_modules=lora["target_modules"] or USUAL_LAYERS,
        modules_to_save=lora["modules_to_save"],
        task_type=adapter_task(cfg),
    )


def add_adapter(model: Any, cfg: Mapping[str, Any]) -> Any:
    """Returns the model with an adapter, whose weights alone are trained.

    They are fresh ones, also for an adapter that is trained further: its shapes count.

    Raises:
        TrainingError: The model has no such layers.
    """
    path = adapter_to_continue(cfg)
    name_or_path = cfg["model"]["name_or_path"]
    settings = fresh_config(cfg) if path is None else saved_config(path, name_or_path)
    for name in settings.modules_to_save or ():
        if not any(f".{module}".endswith(f".{name}") for module, _ in model.named_modules()):
            message = f"model_optim.lora.modules_to_save: the model has no module {name!r}"
            raise TrainingError(f"{message} (correct it, or remove it)")
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        message = str(error).strip().splitlines()[0]
        fix = "correct model_optim.lora.target_modules"
        raise TrainingError(f"no adapter can be added: {message} ({fix})") from error


def measure_model(cfg: Mapping[str, Any], longest: int) -> Measure:
    """Returns what the model takes, by its configuration alone; `longest` in tokens."""
    quantization = _find_quantization(cfg)
    config = load_config(cfg)
    set_head(cfg, config)
    dtype = training_dtype(cfg, stored_dtype(config))
    with torch.device("meta"):
        model = _outline(cfg, config, dtype)
        num_base = sum(p.numel() for p in model.parameters())
        weights = weight_bytes(model, quantization)
        gathered = gathered_bytes(model, cfg["training"])
        if cfg["model_optim"]["lora"]["enabled"]:
            model = add_adapter(model, cfg)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if cfg["model_optim"]["lora"]["enabled"]:
        weights += FLOAT_BYTES * trainable
    notes = [] if has_weights(cfg) else ["the folder has no weights: they begin random, by `seed`"]
    if quantization is not None:
        notes.append(quantized_note(cfg["model_optim"]["quantization"], quantization))
    copies = _num_models(cfg)
    return Measure(
        num_parameters=num_base + (trainable if cfg["model_optim"]["lora"]["enabled"] else 0),
        num_trainable=trainable,
        weight_bytes=weights * copies,
        activation_bytes=_activation_bytes(cfg, config.get_text_config(), longest),
        gathered_bytes=gathered * copies,
        notes=notes,
    )


def _outline(cfg: Mapping[str, Any], config: Any, dtype: torch.dtype) -> Any:
    try:
        return model_class(cfg).from_config(config, dtype=dtype)
    except ValueError as error:
        name, method = cfg["model"]["name_or_path"], cfg["training"]["method"]
        message = f"model.name_or_path {name!r} cannot be trained by method: {method}"
        raise TrainingError(f"{message}: {str(error).strip().splitlines()[0]}") from error


def _num_models(cfg: Mapping[str, Any]) -> int:
    """Returns 2 where a copy of the model is kept to compare with; an adapter needs none."""
    return 2 if keeps_copy(cfg["training"]) and not cfg["model_optim"]["lora"]["enabled"] else 1


def _activation_bytes(cfg: Mapping[str, Any], config: Any, longest: int) -> int:
    """Estimates one forward and backward pass: about 17 numbers of a layer's width per token.

    The count is that of Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
    Models" (2022), equation 2, with attention that keeps no matrix. The logits come in float32,
    with their gradient.
    """
    training = cfg["training"]
    rows = training["train_batch_size"] * method_of(cfg).num_sequences
    number = 4 if training["mixed_precision"] == "no" else 2
    layer = 17 * number * config.hidden_size
    layers = config.num_hidden_layers
    if cfg["model_optim"]["gradient_checkpointing"]:
        kept = layers * number * config.hidden_size + layer
    else:
        kept = layers * layer
    logits = 10 * config.vocab_size if method_of(cfg).head == "language" else 0
    return int(rows * longest * (kept + logits))
