"""Finds, from its files alone, why vLLM could not load a LoRA adapter.

Imports neither vLLM nor torch. What vLLM 0.32 refuses stands in its `lora/peft_helper.py`,
`lora/utils.py` and `lora/lora_model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.vllm.arguments import load_arguments
from truthgpt_serve.model_files import (
    ModelFileError,
    Problem,
    Tensor,
    read_header,
    read_object,
    read_tensors,
)

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_LORA = "name the folder of a LoRA adapter in PEFT's format"
_MERGE = "merge it into its base model (peft: merge_and_unload) and serve the result as a model"
_RETRAIN = "train it without, or merge it into its base model and serve the result as a model"
_INITS = frozenset(("gaussian", "eva", "orthogonal", "mica", "lora_ga"))
"""Values of `init_lora_weights` that leave the base model as it was."""
_WHOLE_MODULES = frozenset(("classifier", "score"))
_FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
_UNCHECKED = re.compile(r"experts|embed|wte|lm_head|score|classifier")
"""Modules whose weights have other names or shapes in the base model's files."""
_TENSOR = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB])(?:\.weight)?"
)
_IN_LAYER = re.compile(r"(?:.*?\.)?([^.\d]+\.\d+\..+)")


def read_config(folder: Path) -> dict[str, Any]:
    """Returns an adapter's configuration.

    Raises:
        ModelFileError: It has none.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ModelFileError(f"{folder}: has no {CONFIG}")
    return read_object(file)


def largest_rank(config: Mapping[str, Any]) -> int:
    """Returns the largest rank of an adapter."""
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))


def find_problems(folder: Path, base: Path | None, max_rank: int | None) -> Iterator[Problem]:
    """Yields why vLLM could not load an adapter.

    Args:
        folder: The adapter's.
        base: The base model's, where it is a local one.
        max_rank: `serving.engine.max_lora_rank`; null means the largest that vLLM takes.
    """
    try:
        config = read_config(folder)
    except ModelFileError as error:
        yield error.message, _LORA
        return
    file = folder / CONFIG
    values = list(_check_values(config))
    features = [] if values else [*_check_features(config), *_check_rank(config, max_rank)]
    for message, fix in (*values, *features):
        yield f"{file}: {message}", fix
    if not values:
        yield from _check_weights(folder, config, base)


def _check_values(config: Mapping[str, Any]) -> Iterator[Problem]:
    kind = config.get("peft_type")
    if kind is not None and str(kind).upper() != "LORA":
        yield f"peft_type is {kind!r}; vLLM serves LORA", _MERGE
        return
    for name in ("r", "lora_alpha", "target_modules"):
        if config.get(name) is None:
            yield f"{name} is missing", _LORA
    if not _is_count(config.get("r", 1)):
        yield f"r must be a positive integer, not {config['r']!r}", _LORA
    if not isinstance(config.get("lora_alpha", 1), (int, float)):
        yield f"lora_alpha must be a number, not {config['lora_alpha']!r}", _LORA
    ranks = config.get("rank_pattern") or {}
    if not isinstance(ranks, Mapping) or not all(map(_is_count, ranks.values())):
        yield f"rank_pattern must have positive integers, not {ranks!r}", _LORA


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_features(config: Mapping[str, Any]) -> Iterator[Problem]:
    saved = [name for name in config.get("modules_to_save") or [] if name not in _WHOLE_MODULES]
    if saved:
        yield f"modules_to_save is {saved}: vLLM serves no adapter with whole modules", _RETRAIN
    if config.get("bias", "none") != "none":
        yield f"bias is {config['bias']!r}: vLLM serves no adapter with biases", _RETRAIN
    for name, what in (
        ("use_dora", "DoRA"),
        ("lora_bias", "LoRA with biases"),
        ("alora_invocation_tokens", "activated LoRA"),
        ("layer_replication", "replicated layers"),
        ("use_bdlora", "block-diagonal LoRA"),
        ("use_qalora", "QALoRA"),
    ):
        if config.get(name):
            yield f"{name} is set: vLLM does not serve {what}", _RETRAIN
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _INITS:
        message = f"init_lora_weights is {init!r}, which changes the base model's weights"
        yield message, "convert it (peft: path_initial_model_for_weight_conversion), or merge it"


def _check_rank(config: Mapping[str, Any], max_rank: int | None) -> Iterator[Problem]:
    rank, choices = largest_rank(config), load_arguments()["max_lora_rank"]["choices"]
    limit = max_rank if max_rank is not None else max(choices)
    if rank <= limit:
        return
    key = "serving.engine.max_lora_rank" if max_rank is not None else "the most that vLLM takes"
    fix = "raise serving.engine.max_lora_rank, or leave it out" if max_rank is not None else _MERGE
    yield f"rank {rank} is more than {limit}, {key}", fix


def _check_weights(folder: Path, config: Mapping[str, Any], base: Path | None) -> Iterator[Problem]:
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        message = f"{folder}: has no weights ({', '.join(WEIGHTS)})"
        if any(folder.glob("adapter_model*.index.json")):
            message += "; vLLM reads no adapter in several files"
        yield message, "save it again as one file"
        return
    if files[0].suffix != ".safetensors":
        return
    try:
        tensors = read_header(files[0])
    except ModelFileError as error:
        yield error.message, "fetch or save it again"
        return
    if not tensors:
        yield f"{files[0]}: has no weights", "save it again"
    problems = [*_check_names(tensors, config), *_check_base(tensors, base)]
    # One of each kind says enough: the others follow from it.
    yield from ((f"{files[0]}: {message}", fix) for message, fix in problems[:3])


def _check_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Problem]:
    other = [name for name in tensors if not _TENSOR.fullmatch(name) and not _is_whole(name)]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        yield f"has {other[0]!r}{more}, which are no weights of a LoRA", _RETRAIN
    halves: dict[str, set[str]] = {}
    for name in tensors:
        if match := _TENSOR.fullmatch(name):
            halves.setdefault(match["module"], set()).add(match["part"][-1])
    for module, parts in halves.items():
        if parts != {"A", "B"}:
            yield f"has only lora_{parts.pop()} of {module!r}", "save it again"
            return
    if config.get("rank_pattern"):
        return
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["part"] != "lora_A" or "experts" in name:
            continue
        if len(tensor.shape) == 2 and tensor.shape[0] != config["r"]:
            message = f"{name!r} has rank {tensor.shape[0]}, but {CONFIG} says r {config['r']}"
            yield message, "name the adapter that belongs to the configuration"
            return


def _is_whole(name: str) -> bool:
    parts = name.split(".")
    is_classifier = parts[-1] in ("weight", "bias") and parts[-2:-1] and parts[-2] in _WHOLE_MODULES
    return bool(is_classifier) or name.endswith(".base_layer.weight")


def _check_base(tensors: Mapping[str, Tensor], base: Path | None) -> Iterator[Problem]:
    weights = _base_weights(base)
    if not weights:
        return
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or _UNCHECKED.search(match["module"]):
            continue
        problem = _check_module(match["module"], match["part"], tensor, weights)
        if problem:
            yield f"{name!r} {problem} of the base model {base}", _OTHER_BASE
            return


_OTHER_BASE = "name an adapter that was trained for this model"
Weights = Mapping[str, list[Tensor]]


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
