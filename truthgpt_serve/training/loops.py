"""Which loop trains what, by the path of its module, so that nothing heavy is imported for it.

Knows no library that trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from truthgpt_serve.config.training.methods import METHODS
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loading import load_module

_PREFERENCES = "truthgpt_serve.training.text.preferences.loop"
_TEXT = {
    "sft": "truthgpt_serve.training.text.sft",
    "dpo": _PREFERENCES,
    "kto": _PREFERENCES,
    "orpo": _PREFERENCES,
    "reward": _PREFERENCES,
    "grpo": _PREFERENCES,
    "ppo": _PREFERENCES,
    "embedding": "truthgpt_serve.training.text.labels.embedding",
    "classification": "truthgpt_serve.training.text.labels.classification",
}
_IMAGES = {
    "denoiser": "truthgpt_serve.training.images.denoiser",
    "vae": "truthgpt_serve.training.images.autoencoder",
    "controlnet": "truthgpt_serve.training.images.controlnet",
    "textual_inversion": "truthgpt_serve.training.images.textual_inversion",
}
CLASSIFIER = "text-classification"
"""The `pipeline_task` of models whose `task` is custom that can be trained."""


def find_loop(cfg: Mapping[str, Any]) -> str:
    """Returns the module of the loop for a configuration.

    Raises:
        TrainingError: There is none.
    """
    task, training = cfg["task"], cfg["training"]
    name = training["method"]
    if task == "image-generation":
        if name != "sft":
            message = f"training.method: {name} is for text"
            raise TrainingError(f"{message} (remove it: an image model supports only sft)")
        return _IMAGES[training["component"]]
    if task in METHODS[name].tasks:
        _check_pipeline(cfg)
        return _TEXT[name]
    fitting = [other for other, method in METHODS.items() if task in method.tasks]
    if not fitting:
        known = sorted({one for method in METHODS.values() for one in method.tasks})
        fix = f"{', '.join(known)} and image-generation can be"
        raise TrainingError(f"task: {task} cannot be trained ({fix})")
    fix = f"set training.method: {' or '.join(fitting)}, or another task"
    raise TrainingError(f"task: {task} is not trained by training.method: {name} ({fix})")


def _check_pipeline(cfg: Mapping[str, Any]) -> None:
    given = cfg["serving"]["engine"].get("pipeline_task", CLASSIFIER)
    if cfg["task"] == "custom" and given != CLASSIFIER:
        message = f"serving.engine.pipeline_task: {given} cannot be trained"
        raise TrainingError(f"{message} (write {CLASSIFIER}, or another task)")


def load_loop(module: str) -> ModuleType:
    """Imports a loop.

    Raises:
        TrainingError: A package is missing; says what to install.
    """
    return load_module(module, TrainingError, what="training", extras="train")
