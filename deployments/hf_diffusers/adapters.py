"""Loads LoRA adapters into a pipeline, all of them inactive; knows nothing of requests.

PEFT looks for an adapter's name inside the names of weights and modules: a short one such as `a`
then matches by accident and nothing is loaded, and one with a dot is refused. So the modules get
names of our own, and clients' names stay free.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgpt_serve.errors import bad_setting

MODULE_NAME = "truthgpt_adapter_{}"


def load_adapters(pipeline: Any, adapters: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Loads each adapter of `serving.adapters`.

    Returns:
        By the name that clients use, the name in the modules.

    Raises:
        ConfigError: One does not fit, or the pipeline takes none.
    """
    names: dict[str, str] = {}
    for index, adapter in enumerate(adapters):
        names[adapter["name"]] = MODULE_NAME.format(index)
        place = f"serving.adapters[{index}].path"
        if not hasattr(pipeline, "load_lora_weights"):
            kind = type(pipeline).__name__
            raise bad_setting(place, f"{kind} takes no LoRA adapters", "remove it")
        _load(pipeline, str(adapter["path"]), names[adapter["name"]], place)
    if names:
        pipeline.disable_lora()
    return names


def _load(pipeline: Any, path: str, name: str, place: str) -> None:
    file = Path(path)
    where, more = (str(file.parent), {"weight_name": file.name}) if file.is_file() else (path, {})
    try:
        with warnings.catch_warnings():
            # PEFT warns of a second adapter on a module, which is what is wanted here.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            pipeline.load_lora_weights(where, adapter_name=name, **more)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise bad_setting(place, f"{path!r} cannot be loaded: {error}") from error
    if not any(name in found for found in pipeline.get_list_adapters().values()):
        message = f"{path!r} has no weights for {type(pipeline).__name__}"
        raise bad_setting(place, message, "name an adapter that was trained for this model")
