"""Which loop trains what, by the path of its module, so that nothing heavy is imported for it.

Knows no library that trains.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from truthgpt_serve.training.errors import TrainingError

_TEXT = {
    "sft": "truthgpt_serve.training.text.sft",
    "dpo": "truthgpt_serve.training.text.preference",
    "grpo": "truthgpt_serve.training.text.preference",
}
_IMAGES = {
    "denoiser": "truthgpt_serve.training.images.denoiser",
    "vae": "truthgpt_serve.training.images.autoencoder",
    "controlnet": "truthgpt_serve.training.images.controlnet",
    "textual_inversion": "truthgpt_serve.training.images.textual_inversion",
}


def find_loop(cfg: Mapping[str, Any]) -> str:
    """Returns the module of the loop for a configuration.

    Raises:
        TrainingError: There is none.
    """
    task, training = cfg["task"], cfg["training"]
    if task == "text-generation":
        return _TEXT[training["method"]]
    if task == "image-generation":
        if training["method"] != "sft":
            message = f"training.method: {training['method']} is for text"
            raise TrainingError(f"{message} (remove it: an image model supports only sft)")
        return _IMAGES[training["component"]]
    fix = "text-generation and image-generation can be"
    raise TrainingError(f"task: {task} cannot be trained ({fix})")


def load_loop(module: str) -> ModuleType:
    """Imports a loop.

    Raises:
        TrainingError: A package is missing; says what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("truthgpt_serve"):
            raise
        fix = "pip install 'truthgpt-serve[train]'"
        raise TrainingError(f"training needs the package {error.name!r} ({fix})") from error
