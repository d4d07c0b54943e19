"""Attention kernels, each proved by a real call before it is taken.

A package's version proves nothing: a kernel may be built for another CUDA, another GPU or another
number format.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from truthgpt_serve.errors import bad_setting

logger = logging.getLogger(__name__)

PLACE = "model_optim.attention"
AUTO_ON_GPU = ("flash_attention_2", "sdpa", "eager")
AUTO_ON_CPU = ("sdpa", "eager")
RECIPES = {
    "flash_attention_2": "install flash-attn built for this torch, on an NVIDIA GPU of the Ampere "
    "generation or later with bfloat16 or float16, or write sdpa",
    "flash_attention_3": "install flash-attn 3 built for this torch, on an NVIDIA GPU of the "
    "Hopper generation with bfloat16 or float16, or write sdpa",
}
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
"""Largest difference between two ways to compute the same values, as a part of the largest one."""

Trial = Callable[[], torch.Tensor]
"""Runs the model once on a small input and returns its outcome."""


def differ(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Returns whether two outcomes of one computation differ by more than rounding."""
    found, expected = found.float().cpu(), expected.float().cpu()
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return True
    largest = max(expected.abs().max().item(), 1e-6)
    return bool((found - expected).abs().max().item() > TOLERANCES.get(dtype, 0.1) * largest)


def choose_attention(wanted: str, model: Any, trial: Trial) -> str:
    """Sets the model's attention and returns its name.

    Args:
        wanted: One of `config.ATTENTION`, or `auto` for the first of the usual order that works.
        model: A transformers model.
        trial: See `Trial`.

    Raises:
        ConfigError: The one that was asked for does not work here; the message says what failed.
    """
    expected = _try(model, "eager", trial)
    if wanted != "auto":
        problem = expected if isinstance(expected, str) else None
        if wanted != "eager":
            problem = _compare(model, wanted, trial, expected)
        if problem is not None:
            where = f"torch {torch.__version__} on {model.device.type} in {model.dtype}"
            message = f"{wanted} does not work with {where}: {problem}"
            raise bad_setting(PLACE, message, RECIPES.get(wanted, "write auto"))
        return wanted
    present = str(model.config._attn_implementation)
    for name in AUTO_ON_GPU if model.device.type == "cuda" else AUTO_ON_CPU:
        problem = _compare(model, name, trial, expected)
        if problem is None:
            return name
        logger.info("attention %s is left out: %s", name, problem)
    return present


def _compare(model: Any, name: str, trial: Trial, expected: torch.Tensor | str) -> str | None:
    """Returns why an attention does not work, or None; the model is left with it."""
    found = _try(model, name, trial)
    if isinstance(found, str):
        return found
    if isinstance(expected, torch.Tensor) and differ(found, expected, model.dtype):
        return "the model's output differs from that with eager attention"
    return None


def _try(model: Any, name: str, trial: Trial) -> torch.Tensor | str:
    """Returns the outcome of a trial with an attention, or why there is none."""
    try:
        model.set_attn_implementation(name)
        with torch.inference_mode():
            found = trial()
    except Exception as error:  # kernels fail in many ways, some with errors of their own
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return found if torch.isfinite(found).all() else "the outcome is not finite"
