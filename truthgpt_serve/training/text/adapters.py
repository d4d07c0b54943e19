"""Adapters that exist already: below what is trained, or trained further."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel

from truthgpt_serve.adapter_files import OTHER_BASE, base_of
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.memory.lora import adapter_to_continue, adapters_below

_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, UserWarning)
"""What peft raises for folders that are no adapter, or one of another model."""


def with_adapters(model: Any, cfg: Mapping[str, Any]) -> Any:
    """Returns the model with the adapters of `model.adapter`.

    Those that stay are added to the weights; on top is the one that is trained further, if any.

    Raises:
        TrainingError: One of them is no adapter of this model.
    """
    base = cfg["model"]["name_or_path"]
    for below in adapters_below(cfg):
        model = _load(model, below, base, trained=False).merge_and_unload()
    path = adapter_to_continue(cfg)
    return model if path is None else _load(model, path, base, trained=True)


def _load(model: Any, path: str, base: str, *, trained: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, path, is_trainable=trained)
    except _ERRORS as error:
        raise _misfit(path, base, error) from error


def saved_config(path: str, base: str) -> LoraConfig:
    """Returns the settings of an adapter.

    Raises:
        TrainingError: It is none, or not of LoRA.
    """
    try:
        found = PeftConfig.from_pretrained(path)
    except _ERRORS as error:
        raise _misfit(path, base, error) from error
    if not isinstance(found, LoraConfig):
        message = f"model.adapter: {path} is no LoRA adapter but {found.peft_type}"
        raise TrainingError(f"{message} (name another)")
    found.inference_mode = False
    found.base_model_name_or_path = base
    return found


def _misfit(path: str, base: str, error: BaseException) -> TrainingError:
    trained = base_of(Path(path))
    own = f", trained for {trained}," if trained else ""
    reason = str(error).strip().partition("\n")[0]
    message = f"model.adapter: {path}{own} cannot be added to {base}: {reason}"
    return TrainingError(f"{message} ({OTHER_BASE})")
