"""What the files of a LoRA adapter say, and whether they fit a base model; loads neither.

Knows adapters of peft and of Diffusers pipelines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.model_files import (
    ModelFileError,
    Problem,
    Tensor,
    read_header,
    read_metadata,
    read_object,
    read_tensors,
)

TEXT_CONFIG = "adapter_config.json"
TEXT_WEIGHTS = "adapter_model.safetensors"
IMAGE_WEIGHTS = "pytorch_lora_weights.safetensors"
IMAGE_SETTINGS = "lora_adapter_metadata"
"""Key of that file's metadata: the LoraConfig of each part, as Diffusers writes it."""
OTHER_BASE = "name an adapter that was trained for this model"
PEFT_NAMES = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
    "modules_to_save": "modules_to_save",
    "dora": "use_dora",
    "rslora": "use_rslora",
}
"""Keys of `model_optim.lora`, and peft's names of them."""
TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.weight)?"
)
"""The name of one half of an update."""
_UNCHECKED = re.compile(r"experts|embed|wte|lm_head|score|classifier")
"""Modules whose weights have other names or shapes in the base model's files."""
_FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
_IN_LAYER = re.compile(r"(?:.*?\.)?([^.\d]+\.\d+\..+)")
Weights = Mapping[str, list[Tensor]]


def base_of(folder: Path) -> str | None:
    """Returns the model that an adapter of peft says it was trained for, or None."""
    try:
        name = read_object(folder / TEXT_CONFIG).get("base_model_name_or_path")
    except ModelFileError:
        return None
    return str(name) if name else None


def find_adapter_problem(folder: Path, base: Path | None, *, is_image: bool) -> Problem | None:
    """Returns what is wrong with an adapter that belongs to a model's weights, or None.

    Args:
        folder: The adapter's; or, for images, its file.
        base: The base model's, where it is a local one.
        is_image: Whether the model is a Diffusers pipeline.
    """
    if is_image:
        if folder.is_file() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
            return None
        return f"{folder}: has no weights", "name the folder of a LoRA adapter for Diffusers"
    file = folder / TEXT_CONFIG
    if not file.is_file():
        fix = "name the folder of a LoRA adapter in PEFT's format, such as a run's model/"
        return f"{folder}: has no {TEXT_CONFIG}", fix
    weights = folder / TEXT_WEIGHTS
    try:
        read_object(file)
        tensors = read_header(weights) if weights.is_file() else {}
    except ModelFileError as error:
        return error.message, "save or fetch it again"
    for message, fix in check_base(tensors, base):
        trained = base_of(folder)
        own = f", which was trained for {trained}" if trained else ""
        return f"{folder}{own}: {message}", fix
    return None


def other_settings(folder: Path, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields keys of `model_optim.lora` that an adapter has another value of, with its own.

    Of peft's adapters, and of those for pipelines that say their settings, as runs write them.

    Args:
        folder: The adapter's.
        given: The keys that are written, and their values.
    """
    try:
        image = folder / IMAGE_WEIGHTS
        settings = _image_settings(image) if image.is_file() else read_object(folder / TEXT_CONFIG)
    except ModelFileError:
        return
    if not settings:
        return
    for key, name in PEFT_NAMES.items():
        if key not in given:
            continue
        own, wanted = settings.get(name), given[key]
        if isinstance(own, list):
            own, wanted = sorted(own), None if wanted is None else sorted(wanted)
        if wanted is not None and (own or False) != (wanted or False):
            yield key, own


def _image_settings(file: Path) -> dict[str, Any]:
    """Returns the settings of the denoiser's adapter, by peft's names; none where it says none."""
    try:
        found = json.loads(read_metadata(file).get(IMAGE_SETTINGS, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    named = [(name.partition("."), value) for name, value in found.items()]
    return {key: value for (part, _, key), value in named if part in ("unet", "transformer")}


def check_base(tensors: Mapping[str, Tensor], base: Path | None) -> Iterator[Problem]:
    """Yields the first tensor of an adapter that does not fit its base model.

    Args:
        tensors: The adapter's, by name.
        base: The base model's folder, where it is a local one.
    """
    weights = _base_weights(base)
    if not weights:
        return
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
        if match is None or _UNCHECKED.search(match["module"]):
            continue
        problem = _check_module(match["module"], match["part"], tensor, weights)
        if problem:
            yield f"{name!r} {problem} of the base model {base}", OTHER_BASE
            return


def _check_module(module: str, part: str, tensor: Tensor, weights: Weights) -> str:
    """Returns why an adapter's tensor does not fit the base model, or nothing."""
    key = _key(module)
    found = weights.get(key)
    if found is None:
        return "" if _may_have(key, weights) else "is for a module that is not one"
    if not all(one.dtype in _FLOATS for one in found):
        return ""  # packed
    if all(len(one.shape) < 2 for one in found):
        return "is for a module that is no linear layer"
    edge = tensor.shape[-1] if part[-1] == "A" else tensor.shape[0]
    if len(tensor.shape) != 2 or any(edge in one.shape or len(one.shape) > 2 for one in found):
        return ""
    return f"has shape {list(tensor.shape)}, which does not fit the shape {list(found[0].shape)}"


def _may_have(key: str, weights: Weights) -> bool:
    """Returns whether a base model may have a module whose name its files write otherwise."""
    layer = ".".join(key.split(".")[:2])
    has_layer = any(name.startswith(f"{layer}.") for name in weights) or "." not in key
    last = key.rpartition(".")[2]
    return has_layer and any(name.rpartition(".")[2] == last for name in weights)


def _base_weights(base: Path | None) -> dict[str, list[Tensor]]:
    """Returns the base model's weights by the keys of their modules; none where it is unknown."""
    if base is None or not base.is_dir():
        return {}
    try:
        tensors = read_tensors(base)
    except ModelFileError:  # the base model's own check names it
        return {}
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part in ("weight", "qweight", "weight_packed"):
            found.setdefault(_key(module), []).append(tensor)
    return found


def _key(module: str) -> str:
    """Returns a module's name from its layer on: what is before differs between files."""
    match = _IN_LAYER.fullmatch(module)
    return match[1] if match else module
