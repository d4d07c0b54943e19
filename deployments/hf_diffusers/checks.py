"""What a schema cannot see in an image model's configuration: faults between its sections.

Imports neither torch nor diffusers; what only a machine can tell is found when the model loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deployments.hf_diffusers.choices import (
    ATTENTION,
    GPU_ATTENTION,
    GPU_QUANTIZATION,
    QUANTIZATION,
    SINGLE_FILES,
)
from truthgpt_serve.config.paths import expand, must_be_local, resolve_local
from truthgpt_serve.config.source import Source
from truthgpt_serve.device import find_kernel_faults, runs_on_cpu
from truthgpt_serve.errors import Fault
from truthgpt_serve.model_files import ModelFileError, has_tokenizer, read_header, read_object


def check_config(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults between sections; their places are dotted paths."""
    checks: tuple[Callable[[Mapping[str, Any]], list[Fault]], ...] = (
        _check_hardware,
        _check_attention,
        _check_quantization,
        _check_files,
        _check_parts,
        _check_adapters,
    )
    return [fault for check in checks for fault in check(cfg)]


def _check_hardware(cfg: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    gpus = cfg["hardware"]["gpus"]
    if isinstance(gpus, (int, float)) and gpus > 1:
        message = f"{gpus} is more than one: an image engine uses one GPU"
        faults.append(Fault("hardware.gpus", message, "write 1, and raise serving.num_replicas"))
    offload = cfg["serving"]["engine"].get("offload", "none")
    if offload != "none" and runs_on_cpu(cfg):
        message = f"{offload} moves weights to a GPU, and the model has none"
        faults.append(Fault("serving.engine.offload", message, "write none, or set hardware.gpus"))
    return faults


def _check_attention(cfg: Mapping[str, Any]) -> list[Fault]:
    known = (*ATTENTION, "auto")
    return find_kernel_faults(cfg, "attention", known, GPU_ATTENTION, "write auto or sdpa")


def _check_quantization(cfg: Mapping[str, Any]) -> list[Fault]:
    name = cfg["model_optim"]["quantization"]
    gguf_file = cfg["serving"]["engine"].get("gguf_file")
    fix = "write torchao-int8, or null"
    faults = find_kernel_faults(cfg, "quantization", QUANTIZATION, GPU_QUANTIZATION, fix)
    if faults:
        return faults
    if name == "gguf" and gguf_file is None:
        message = "gguf needs the file with the denoiser's weights"
        return [Fault("model_optim.quantization", message, "set serving.engine.gguf_file")]
    if gguf_file is not None and name != "gguf":
        message = "has no effect without model_optim.quantization: gguf"
        return [Fault("serving.engine.gguf_file", message, "set that, or remove it")]
    return []


def _check_files(cfg: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    engine, weights = cfg["serving"]["engine"], str(cfg["model"]["name_or_path"] or "")
    if weights.endswith(SINGLE_FILES) and engine.get("pipeline") is None:
        message = f"{weights!r} is a single file, which does not say its pipeline"
        fix = "set serving.engine.pipeline, such as StableDiffusionXLPipeline"
        faults.append(Fault("model.name_or_path", message, fix))
    path = engine.get("gguf_file")
    if isinstance(path, str) and not Path(find_local(path)).is_file():
        faults.append(_missing("gguf_file", path))
    for key in ("vae", "controlnet"):
        path = engine.get(key)
        if isinstance(path, str) and must_be_local(path) and not Path(find_local(path)).exists():
            faults.append(_missing(key, path))
    for index, path in enumerate(engine.get("textual_inversion") or ()):
        local = isinstance(path, str) and must_be_local(path)
        if local and not Path(find_local(path)).exists():
            faults.append(_missing(f"textual_inversion[{index}]", path))
    return faults


def _missing(key: str, path: str) -> Fault:
    return Fault(f"serving.engine.{key}", f"{path!r} does not exist", "correct the path")


def _check_parts(cfg: Mapping[str, Any]) -> list[Fault]:
    """Checks that the folder of a pipeline has each part that its index names."""
    folder = expand(str(cfg["model"]["name_or_path"] or ""))
    index = folder / "model_index.json"
    if not index.is_file():
        return []
    place = "model.name_or_path"
    try:
        parts = read_object(index)
    except ModelFileError as error:
        return [Fault(place, error.message, "fetch it again")]
    needed = [
        name
        for name, kind in parts.items()
        if isinstance(kind, list) and len(kind) == 2 and isinstance(kind[0], str)
    ]
    engine = cfg["serving"]["engine"]
    spared = {"vae"} if engine.get("vae") else set()
    if not engine.get("safety_checker", True):
        spared |= {"safety_checker", "feature_extractor"}
    if engine.get("gguf_file"):
        spared |= {"transformer", "unet"}
    missing = [name for name in needed if name not in spared and not (folder / name).is_dir()]
    if missing:
        message = f"{index}: names {', '.join(missing)}, which the folder does not have"
        return [Fault(place, message, "fetch the missing folders, or correct the index")]
    return [
        Fault(place, f"{folder / name}: has no tokenizer", "fetch the files of the tokenizer")
        for name in needed
        if name.startswith("tokenizer") and not has_tokenizer(folder / name)
    ]


def _check_adapters(cfg: Mapping[str, Any]) -> list[Fault]:
    """Checks adapters that are local; those of the hub are checked when they load."""
    faults: list[Fault] = []
    for number, adapter in enumerate(cfg["serving"]["adapters"]):
        place = f"serving.adapters[{number}].path"
        faults += [Fault(place, *problem) for problem in _check_adapter(Path(adapter["path"]))]
    return faults


def _check_adapter(path: Path) -> list[tuple[str, str]]:
    path = expand(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if path.is_dir() and not files and not any(path.glob("*.bin")):
        fix = "name the folder or the file of a LoRA adapter in Diffusers' format"
        return [(f"{path}: has no weights", fix)]
    for file in files:
        if file.suffix != ".safetensors" or not file.is_file():
            continue
        try:
            tensors = read_header(file)
        except ModelFileError as error:
            return [(error.message, "fetch or save it again")]
        if not any("lora" in name.lower() for name in tensors):
            fix = "name an adapter; a whole model is model.name_or_path"
            return [(f"{file}: has no weights of a LoRA", fix)]
    return []


def find_local(path: str) -> str:
    """Returns the absolute path of a file or folder that a setting names, else `path` itself.

    A relative one is looked up in the working directory, then in the parent of
    `TRUTHGPT_CONFIG_DIR`.
    """
    return resolve_local(path, Source())
