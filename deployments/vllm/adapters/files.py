"""Finds, from its files alone, why vLLM could not load a LoRA adapter.

Imports neither vLLM nor torch. What vLLM 0.32 refuses stands in its `lora/peft_helper.py`,
`lora/utils.py` and `lora/lora_model.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deployments.vllm.arguments import load_arguments
from truthgpt_serve.adapter_files import TENSOR, check_base
from truthgpt_serve.model_files import (
    ModelFileError,
    Problem,
    Tensor,
    read_header,
    read_object,
)

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_LORA = "name the folder of a LoRA adapter in PEFT's format"
_MERGE = "merge it into its base model (peft: merge_and_unload) and serve the result as a model"
_RETRAIN = "train it without, or merge it into its base model and serve the result as a model"
_INITS = frozenset(("gaussian", "eva", "orthogonal", "mica", "lora_ga"))
"""Values of `init_lora_weights` that leave the base model as it was."""
_WHOLE_MODULES = frozenset(("classifier", "score"))


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
    problems = [*_check_names(tensors, config), *check_base(tensors, base)]
    # One of each kind says enough: the others follow from it.
    yield from ((f"{files[0]}: {message}", fix) for message, fix in problems[:3])


def _check_names(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Iterator[Problem]:
    other = [name for name in tensors if not TENSOR.fullmatch(name) and not _is_whole(name)]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        yield f"has {other[0]!r}{more}, which are no weights of a LoRA", _RETRAIN
    halves: dict[str, set[str]] = {}
    for name in tensors:
        if match := TENSOR.fullmatch(name):
            halves.setdefault(match["module"], set()).add(match["part"][-1])
    for module, parts in halves.items():
        if parts != {"A", "B"}:
            yield f"has only lora_{parts.pop()} of {module!r}", "save it again"
            return
    if config.get("rank_pattern"):
        return
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name)
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
