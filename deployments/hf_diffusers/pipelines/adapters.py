"""Loads LoRA adapters into a pipeline, all of them inactive.

PEFT looks for an adapter's name inside the names of weights and modules: a short one such as `a`
then matches by accident and nothing is loaded, and one with a dot is refused. So the modules get
names of our own, and clients' names stay free.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgpt_serve.errors import bad_setting

logger = logging.getLogger(__name__)

MODULE_NAME = "truthgpt_adapter_{}"


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of one pipeline.

    Attributes:
        names: By the name that clients use, the name in the modules.
        failed: Why each of the others could not be loaded, by the name that clients use.
    """

    names: dict[str, str]
    failed: dict[str, str]


def load_adapters(pipeline: Any, adapters: Sequence[Mapping[str, Any]]) -> Adapters:
    """Loads each adapter of `serving.adapters`.

    One that does not fit is left out: the model and the other adapters serve without it.
    """
    found = Adapters({}, {})
    for index, adapter in enumerate(adapters):
        name, module_name = adapter["name"], MODULE_NAME.format(index)
        reason = _load(pipeline, str(adapter["path"]), module_name)
        if reason:
            logger.error("the adapter %r is not served: %s", name, reason)
            found.failed[name] = reason
        else:
            found.names[name] = module_name
    if found.names:
        pipeline.disable_lora()
    return found


def add_to_weights(pipeline: Any, paths: Sequence[str]) -> None:
    """Adds the adapters of `model.adapter` to a pipeline's weights, one after the other.

    Raises:
        ConfigError: One of them does not fit the pipeline, or its weights are quantized.
    """
    for path in paths:
        name = MODULE_NAME.format("base")
        reason = _load(pipeline, path, name)
        if not reason:
            try:
                parts = [part for part, names in pipeline.get_list_adapters().items() if names]
                pipeline.fuse_lora(components=parts, adapter_names=[name])
                pipeline.unload_lora_weights()
            except (ValueError, RuntimeError, TypeError, AttributeError) as error:
                reason = f"{path!r} cannot be added to the weights: {error}"
        if reason:
            fix = "name an adapter of this pipeline; quantized weights take none"
            raise bad_setting("model.adapter", reason, fix)


def _load(pipeline: Any, path: str, name: str) -> str:
    """Loads one adapter; returns why it cannot be, or nothing."""
    if not hasattr(pipeline, "load_lora_weights"):
        return f"{type(pipeline).__name__} takes no LoRA adapters"
    file = Path(path)
    where, more = (str(file.parent), {"weight_name": file.name}) if file.is_file() else (path, {})
    try:
        with warnings.catch_warnings():
            # PEFT warns of a second adapter on a module, which is what is wanted here.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            pipeline.load_lora_weights(where, adapter_name=name, **more)
    except Exception as error:  # whatever is in the file, the model itself is to serve
        _remove(pipeline, name)
        return f"{path!r} cannot be loaded: {type(error).__name__}: {error}"
    if not any(name in found for found in pipeline.get_list_adapters().values()):
        _remove(pipeline, name)
        return f"{path!r} has no weights for {type(pipeline).__name__}"
    return ""


def _remove(pipeline: Any, name: str) -> None:
    """Removes what a failed load has left in the modules."""
    for part in pipeline.components.values():
        if name not in getattr(part, "peft_config", {}):
            continue
        # Diffusers' models and transformers' have it under two names.
        remove = getattr(part, "delete_adapters", None) or part.delete_adapter
        with warnings.catch_warnings():
            # Loading has made it the active one; in the end none is.
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
            remove(name)
