"""TruthGPT Serve: many model families behind one OpenAI-compatible address, on Ray Serve."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgpt_serve.registry import MODEL_REGISTRY, register_model
    from truthgpt_serve.runner import build_async_model, build_model, run_infer

__all__ = ["MODEL_REGISTRY", "build_async_model", "build_model", "register_model", "run_infer"]

_HOMES = {
    "MODEL_REGISTRY": "truthgpt_serve.registry",
    "register_model": "truthgpt_serve.registry",
    "build_async_model": "truthgpt_serve.runner",
    "build_model": "truthgpt_serve.runner",
    "run_infer": "truthgpt_serve.runner",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: `truthgpt --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
