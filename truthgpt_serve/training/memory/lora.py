"""From `model_optim.lora` to the arguments of peft's `LoraConfig` that texts and images share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lora_arguments(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments; the layers and what is saved besides are each loop's own."""
    alpha = lora["alpha"]
    return {
        "r": lora["r"],
        # vLLM and others read a whole number.
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": lora["dropout"],
        "use_dora": lora["dora"],
        "use_rslora": lora["rslora"],
    }
