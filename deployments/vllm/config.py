"""The vLLM family's entry in the registry and the checks of its configuration.

Imports neither vLLM nor torch, so a Serve file is validated, and the router runs, without them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from deployments.vllm.adapters.files import find_problems
from deployments.vllm.arguments import JSON_TYPES, find_faults, load_arguments, open_arguments
from truthgpt_serve.config.paths import expand, must_be_local
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import Fault
from truthgpt_serve.model_files import has_tokenizer
from truthgpt_serve.wording import suggest

GPU_MARGIN = 0.02
"""Part of a whole GPU that a replica with a fraction of it leaves free. The engine's own budget
does not count its CUDA context and graphs, about 0.5 to 1 GiB."""

ATTENTION_NAMES = {
    "flash": "FLASH_ATTN",
    "flash_attention_2": "FLASH_ATTN",
    "flashinfer": "FLASHINFER",
    "flex": "FLEX_ATTENTION",
    "flex_attention": "FLEX_ATTENTION",
    "triton": "TRITON_ATTN",
    "cpu": "CPU_ATTN",
}
"""Common names of `model_optim.attention`; the engine's own names work too, in any case."""

_DEFAULT_SEQUENCES_CPU = 128
_DEFAULT_SEQUENCES_GPU = 256
_DEFAULT_SEQUENCES_LARGE_GPU = 1024
_SMALLER_GPUS = ("A100", "A10", "L4", "L40", "T4", "V100", "P100", "P4", "K80", "RTX")


class EngineConfig(BaseModel):
    """`serving.engine`: vLLM's own arguments, in snake case.

    `engine_arguments.json` lists them; those that the product sets from other keys are refused.
    """

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _check_arguments(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("engine_argument", "{message}", {"message": message}),
                loc=(key,),
                input=data.get(key),
            )
            for key, message in find_faults(data).items()
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return data

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        properties = {}
        for name in open_arguments():
            row = load_arguments()[name]
            kind = JSON_TYPES[row["kind"]]
            properties[name] = {"description": row["help"], **kind, **row.get("bounds", {})}
            if "choices" in row and not row["kind"].startswith("list"):
                properties[name]["enum"] = row["choices"]
        return {
            "title": cls.__name__,
            "description": cls.__doc__ or "",
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
        }


def gpu_memory_share(cfg: Mapping[str, Any]) -> float | None:
    """Returns the part of the GPU that the engine may take, or None for its own default.

    A fraction of a GPU gives that fraction less `GPU_MARGIN`; a whole GPU the engine's default.
    """
    gpus = cfg["hardware"]["gpus"]
    if not isinstance(gpus, (int, float)) or not 0 < gpus < 1:
        return None
    return round(gpus - GPU_MARGIN, 4)


def attention_backend(cfg: Mapping[str, Any]) -> str | None:
    """Returns the engine's name of `model_optim.attention`, or None for its own choice."""
    name = str(cfg["model_optim"]["attention"])
    if name.lower() == "auto":
        return None
    return ATTENTION_NAMES.get(name.lower(), name.upper())


def tensor_parallel_size(cfg: Mapping[str, Any]) -> int:
    """Returns over how many devices each layer is split: the GPUs, less pipeline stages."""
    engine, gpus = cfg["serving"]["engine"], cfg["hardware"]["gpus"]
    given = engine.get("tensor_parallel_size")
    if given is not None:
        return int(given)
    if not isinstance(gpus, (int, float)) or gpus <= 1:
        return 1
    return max(1, int(gpus) // int(engine.get("pipeline_parallel_size") or 1))


def default_ongoing_requests(cfg: Mapping[str, Any]) -> int:
    """Returns how many sequences the engine decodes together: its `max_num_seqs`.

    Without one it is what the engine's API server chooses: on CPU 128 for each worker, on a GPU
    256, and 1024 on one with 70 GiB or more (A100 excepted). A GPU that the configuration does not
    name counts as large: a limit above the engine's moves waiting requests into the engine's own
    queue, while one below it would leave the GPU half used. `gpus: auto` that nothing decides
    counts as 256.
    """
    engine = cfg["serving"]["engine"]
    if engine.get("max_num_seqs") is not None:
        return int(engine["max_num_seqs"])
    workers = tensor_parallel_size(cfg) * int(engine.get("pipeline_parallel_size") or 1)
    number = _default_sequences(cfg["hardware"], workers)
    if engine.get("performance_mode") == "throughput":
        number *= 2
    tokens = engine.get("max_num_batched_tokens")
    return min(number, tokens) if isinstance(tokens, int) else number


def _default_sequences(hardware: Mapping[str, Any], workers: int) -> int:
    gpus = hardware["gpus"]
    if gpus == "auto":
        gpus = {"cpu": 0, "gpu": 1}.get(os.environ.get("TRUTHGPT_ACCELERATOR", ""))
        if hardware.get("device") == "cpu":
            gpus = 0
    if gpus is None:
        return _DEFAULT_SEQUENCES_GPU
    if gpus == 0:
        return _DEFAULT_SEQUENCES_CPU * workers
    accelerator = str(hardware.get("accelerator_type") or "").upper()
    if any(accelerator.startswith(name) for name in _SMALLER_GPUS):
        return _DEFAULT_SEQUENCES_GPU
    return _DEFAULT_SEQUENCES_LARGE_GPU


def check_config(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults between sections; their places are dotted paths."""
    checks: tuple[Callable[[Mapping[str, Any]], list[Fault]], ...] = (
        _check_gpu_share,
        _check_parallel,
        _check_names,
        _check_adapters,
        _check_adapter_files,
        _check_tokenizer,
    )
    return [fault for check in checks for fault in check(cfg)]


def _check_gpu_share(cfg: Mapping[str, Any]) -> list[Fault]:
    gpus, share = cfg["hardware"]["gpus"], gpu_memory_share(cfg)
    if share is None:
        return []
    if share <= 0:
        message = f"{gpus} leaves the engine no memory: {GPU_MARGIN} of a GPU is kept free"
        return [Fault("hardware.gpus", message, f"write more than {GPU_MARGIN}")]
    given = cfg["serving"]["engine"].get("gpu_memory_utilization")
    if isinstance(given, (int, float)) and given > share:
        return [
            Fault(
                "serving.engine.gpu_memory_utilization",
                f"{given} is more than the {share} that hardware.gpus: {gpus} leaves "
                f"({GPU_MARGIN} is kept free)",
                f"write at most {share}, or leave it out for exactly that",
            )
        ]
    return []


def _check_parallel(cfg: Mapping[str, Any]) -> list[Fault]:
    engine, gpus = cfg["serving"]["engine"], cfg["hardware"]["gpus"]
    sizes = [engine.get(f"{name}_parallel_size") for name in ("tensor", "pipeline")]
    if sizes == [None, None] or not isinstance(gpus, (int, float)) or gpus == 0:
        return []
    if not all(size is None or (isinstance(size, int) and size > 0) for size in sizes):
        return []
    workers = tensor_parallel_size(cfg) * (sizes[1] or 1)
    if workers == max(1, int(gpus)):
        return []
    key = "tensor" if sizes[0] is not None else "pipeline"
    message = f"the engine would use {workers} GPUs, but hardware.gpus is {gpus}"
    fix = f"set hardware.gpus: {workers}, or leave {key}_parallel_size out"
    return [Fault(f"serving.engine.{key}_parallel_size", message, fix)]


def _check_names(cfg: Mapping[str, Any]) -> list[Fault]:
    faults: list[Fault] = []
    for key, value, argument in (
        ("quantization", cfg["model_optim"]["quantization"], "quantization"),
        ("attention", attention_backend(cfg), "attention_backend"),
    ):
        known = load_arguments()[argument]["known"]
        if value is None or value in known:
            continue
        given = cfg["model_optim"][key]
        message = f"vLLM has no {key} {given!r}"
        faults.append(Fault(f"model_optim.{key}", message, suggest(value, known)))
    return faults


def _check_adapters(cfg: Mapping[str, Any]) -> list[Fault]:
    engine, adapters = cfg["serving"]["engine"], cfg["serving"]["adapters"]
    if adapters:
        return []
    return [
        Fault(f"serving.engine.{key}", "has no effect without serving.adapters", "remove it")
        for key in ("max_loras", "max_lora_rank", "max_cpu_loras")
        if engine.get(key) is not None
    ]


def _check_adapter_files(cfg: Mapping[str, Any]) -> list[Fault]:
    """Checks adapters that are local folders; those of the hub are checked when they load."""
    weights = cfg["model"]["name_or_path"]
    base = expand(weights) if weights else None
    max_rank = cfg["serving"]["engine"].get("max_lora_rank")
    faults: list[Fault] = []
    for index, adapter in enumerate(cfg["serving"]["adapters"]):
        folder = expand(adapter["path"])
        place = f"serving.adapters[{index}].path"
        if folder.is_dir():
            faults += [Fault(place, *found) for found in find_problems(folder, base, max_rank)]
        elif folder.is_file():
            faults.append(Fault(place, f"{str(folder)!r} is a file", "name the adapter's folder"))
    return faults


def _check_tokenizer(cfg: Mapping[str, Any]) -> list[Fault]:
    engine, weights = cfg["serving"]["engine"], cfg["model"]["name_or_path"]
    folder = expand(engine.get("tokenizer") or weights or "no model")
    if engine.get("skip_tokenizer_init") or not must_be_local(str(folder)) or not folder.is_dir():
        return []
    if has_tokenizer(folder) or any(folder.glob("*.gguf")):
        return []
    place = "serving.engine.tokenizer" if engine.get("tokenizer") else "model.name_or_path"
    fix = "put the tokenizer's files into it, or set serving.engine.tokenizer"
    return [Fault(place, f"{str(folder)!r} has no tokenizer", fix)]


def keeps_prefixes(cfg: Mapping[str, Any]) -> bool:
    """Returns whether the engine has its prefix cache, as it does unless told otherwise."""
    return cfg["serving"]["engine"].get("enable_prefix_caching") is not False


FAMILY = FamilySpec(
    name="vllm",
    class_path="deployments.vllm.deployment:VllmModel",
    tasks=("text-generation", "embedding", "custom"),
    engine_config=EngineConfig,
    takes_adapters=True,
    needs_weights=True,
    on_event_loop=True,
    tensor_parallel=True,
    keeps_prefixes=keeps_prefixes,
    max_ongoing_requests=default_ongoing_requests,
    check=check_config,
    doctor_path="deployments.vllm.doctor:examine",
)
