"""From `model_optim.lora` to the arguments of peft's `LoraConfig` that texts and images share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def adapters_below(cfg: Mapping[str, Any]) -> list[str]:
    """Returns the adapters of `model.adapter` that stay as they are below the trained one."""
    adapters: list[str] = cfg["model"].get("adapter") or []
    return adapters if cfg["model_optim"]["lora"].get("stack") else adapters[:-1]


def adapter_to_continue(cfg: Mapping[str, Any]) -> str | None:
    """Returns the adapter that is trained further, or None."""
    adapters: list[str] = cfg["model"].get("adapter") or []
    return None if not adapters or cfg["model_optim"]["lora"]["stack"] else adapters[-1]


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
