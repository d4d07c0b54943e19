"""Loads text models with quantized weights, for an adapter to be trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from peft import prepare_model_for_kbit_training

from truthgpt_serve.training.memory.quantization import Quantization, quantizer

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantized_options(
    cfg: Mapping[str, Any], quantization: Quantization | None, *, on_cpu: bool
) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that quantize linear layers; none without."""
    if quantization is None:
        return {}
    settings = quantizer(transformers, quantization, COMPUTE[cfg["training"]["mixed_precision"]])
    device = "cpu" if on_cpu else torch.cuda.current_device()
    return {"quantization_config": settings, "device_map": {"": device}}


def prepare_quantized(model: Any) -> Any:
    """Returns the model ready for an adapter: what bitsandbytes leaves is then in float32."""
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def weight_bytes(model: Any, quantization: Quantization | None = None) -> int:
    """Returns the bytes of a model's weights, from its shapes alone; shared ones count once.

    Args:
        model: Without an adapter.
        quantization: Of its linear layers but the output head, where they are to be quantized.
    """
    sizes = {id(one): one.numel() * one.element_size() for one in model.parameters()}
    if quantization is None:
        return sum(sizes.values())
    if quantization.package == "bitsandbytes":
        sizes = {id(one): one.numel() * 4 for one in model.parameters()}
    head = model.get_output_embeddings()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            sizes[id(layer.weight)] = int(layer.weight.numel() * quantization.weight_bytes)
    return sum(sizes.values())
