"""The settings and the registry entry of the family `onnxruntime`; imports no ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from truthgpt_serve.config.base import Count, Section, Text
from truthgpt_serve.config.paths import expand, must_be_local
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import Fault

TEXT = "text-generation"
DEFAULT_FILE = "model.onnx"
MIN_ONGOING_REQUESTS = 64
TEXT_REQUESTS = 8
"""Texts at the same time: each has a cache of its own, and all share the same cores."""
OF_TENSORS = ("batch_requests", "max_batch_rows")
OF_TEXTS = ("default_max_new_tokens", "max_model_len")
"""Settings that mean something for one of the tasks only."""
ExecutionProvider = Literal["auto", "cpu", "cuda", "tensorrt"]


class OnnxSettings(Section):
    """What `serving.engine` may say for `family: onnxruntime`."""

    file: Text | None = None
    """The .onnx file inside the folder `model.name_or_path`; null takes the only one, else
    `model.onnx`."""
    execution_provider: ExecutionProvider = "auto"
    """Where the graph runs. `auto` follows `hardware`: CUDA with a GPU where it works, else the
    CPU; what it took is in the log and in the model's metadata. A named one that does not work on
    the machine is an error."""
    provider_options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """ONNX Runtime's own options of the execution provider, such as `gpu_mem_limit` or
    `trt_fp16_enable`."""
    graph_optimization: Literal["none", "basic", "extended", "layout", "all"] = "all"
    """How far ONNX Runtime rewrites the graph when it loads. More starts later and runs faster."""
    parallel_branches: bool = False
    """Run independent branches of the graph at the same time, on `hardware.cpus` further threads.
    Helps wide graphs, costs others."""
    spinning: bool = False
    """Let idle threads spin for work. Faster for one model alone on its cores, slower for all when
    several models share them."""
    batch_requests: bool | Literal["auto"] = "auto"
    """Run waiting requests together along the first axis. `auto` does so when every input and
    output has the same free first axis, and a trial with random numbers gives each request the
    same result as alone; `true` relies on the shapes only, as a dynamically quantized model needs,
    whose results depend a little on what else is in the batch."""
    max_batch_rows: Count = 256
    """Most rows of the first axis in one run. More raises throughput and memory; one request that
    has more by itself runs alone."""
    default_max_new_tokens: Count = 256
    """Tokens of an answer for requests that do not say, with `task: text-generation`."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together, with `task: text-generation`; null takes what the
    model's configuration says. Less bounds the memory of each request."""


def settings_of(cfg: Mapping[str, Any]) -> OnnxSettings:
    """Returns the settings in a configuration."""
    return OnnxSettings.model_validate(cfg["serving"]["engine"])


def find_file(cfg: Mapping[str, Any]) -> Path | Fault:
    """Returns the .onnx file, or what is wrong with its name."""
    place = "model.name_or_path"
    name = cfg["model"]["name_or_path"]
    if not name:
        return Fault(place, "is required", "write the path of an .onnx file, or of its folder")
    path = expand(name)
    wanted = settings_of(cfg).file
    if path.is_dir():
        return _find_in(path, wanted)
    if not path.exists():
        fix = "download the model, and write the path of the .onnx file or of its folder"
        return Fault(place, f"{name!r} is no local file or folder", fix)
    if wanted is not None:
        fix = "leave it out, or name the folder in model.name_or_path"
        return Fault("serving.engine.file", f"{wanted!r} has no meaning: {name!r} is a file", fix)
    return path


def _find_in(folder: Path, wanted: str | None) -> Path | Fault:
    if wanted is not None:
        path = folder / wanted
        if path.is_file():
            return path
        message = f"{str(folder)!r} has no file {wanted!r}"
        return Fault("serving.engine.file", message, _list(folder))
    files = sorted(folder.glob("*.onnx"))
    if len(files) == 1:
        return files[0]
    if (folder / DEFAULT_FILE) in files:
        return folder / DEFAULT_FILE
    what = "several .onnx files" if files else "no .onnx file"
    return Fault("model.name_or_path", f"{str(folder)!r} has {what}", _list(folder))


def _list(folder: Path) -> str:
    found = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.onnx"))[:8]
    if not found:
        return "export the model to ONNX first, with torch.onnx for example"
    return f"write serving.engine.file: one of {', '.join(found)}"


def default_ongoing_requests(cfg: Mapping[str, Any]) -> int:
    """Returns how many requests one replica gets: one batch that runs and one that gathers.

    Of texts as many as may take turns.
    """
    if cfg["task"] == TEXT:
        return TEXT_REQUESTS
    max_batch_size: int = cfg["serving"]["batching"]["max_batch_size"] or 1
    return max(MIN_ONGOING_REQUESTS, 2 * max_batch_size)


def check_config(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults between sections; their places are dotted paths."""
    return [
        *_check_file(cfg),
        *_check_task(cfg),
        *_check_provider(cfg),
        *_check_optim(cfg["model_optim"]),
    ]


def _check_task(cfg: Mapping[str, Any]) -> list[Fault]:
    other = OF_TENSORS if cfg["task"] == TEXT else OF_TEXTS
    message = f"has no effect with `task: {cfg['task']}`"
    return [
        Fault(f"serving.engine.{name}", message, "leave it out")
        for name in other
        if name in cfg["serving"]["engine"]
    ]


def _check_file(cfg: Mapping[str, Any]) -> list[Fault]:
    name = cfg["model"]["name_or_path"]
    if not name or (must_be_local(name) and not expand(name).exists()):
        return []  # the general check says so
    found = find_file(cfg)
    return [found] if isinstance(found, Fault) else []


def _check_provider(cfg: Mapping[str, Any]) -> list[Fault]:
    place = "serving.engine.execution_provider"
    hardware, provider = cfg["hardware"], settings_of(cfg).execution_provider
    gpus = hardware["gpus"]
    on_cpu = hardware["device"] == "cpu" or gpus == 0
    if provider in ("cuda", "tensorrt") and on_cpu:
        fix = "set hardware.gpus: 1, or execution_provider: cpu"
        return [Fault(place, f"{provider} needs a GPU, but hardware gives none", fix)]
    if provider == "cpu" and hardware["device"] == "cuda":
        fix = "set hardware.device: cpu, or leave execution_provider out"
        return [Fault(place, "cpu contradicts hardware.device: cuda", fix)]
    if isinstance(gpus, (int, float)) and gpus > 1:
        fix = "set hardware.gpus: 1 and raise serving.num_replicas"
        return [Fault("hardware.gpus", f"a session runs on one GPU, not on {gpus}", fix)]
    return []


def _check_optim(optim: Mapping[str, Any]) -> list[Fault]:
    """Returns faults for settings that an .onnx file has inside it already."""
    fixes = (
        ("dtype", "auto", "leave it out, and export the model with this type"),
        ("quantization", None, "leave it out: a quantized .onnx file runs as it is"),
        ("compile", False, "leave it out: serving.engine.graph_optimization does this"),
        ("attention", "auto", "leave it out: the graph in the file says how attention is computed"),
    )
    return [
        Fault(f"model_optim.{key}", f"{optim[key]!r} cannot be chosen for an .onnx file", fix)
        for key, default, fix in fixes
        if optim[key] != default
    ]


FAMILY = FamilySpec(
    name="onnxruntime",
    class_path="deployments.onnx.deployment:OnnxModel",
    class_paths={TEXT: "deployments.onnx.text.deployment:OnnxTextModel"},
    tasks=("tensor", TEXT),
    engine_config=OnnxSettings,
    needs_weights=True,
    max_ongoing_requests=default_ongoing_requests,
    check=check_config,
    doctor_path="deployments.onnx.doctor:examine",
)
