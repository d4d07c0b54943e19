"""Device, number format and kernels of a model: the rules that families with torch share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from truthgpt_serve.errors import ConfigError, bad_setting
from truthgpt_serve.wording import suggest


def runs_on_cpu(cfg: Mapping[str, Any]) -> bool:
    """Returns whether a configuration, as a nested dict, asks for no GPU."""
    return bool(cfg["hardware"]["gpus"] == 0 or cfg["hardware"]["device"] == "cpu")


def choose_device(hardware: Mapping[str, Any], *, has_gpu: bool, library: str) -> str:
    """Returns `cpu` or `cuda` for a replica: what `gpus` says, else the GPU if there is one.

    Args:
        hardware: The section of the configuration, as a nested dict.
        has_gpu: Whether the library that computes sees a GPU.
        library: Its name and version, for the message.

    Raises:
        ConfigError: A GPU is asked for, and the library sees none.
    """
    gpus, wanted = hardware["gpus"], hardware["device"]
    if gpus == 0 or wanted == "cpu":
        return "cpu"
    if has_gpu:
        return "cuda"
    if gpus == "auto" and wanted == "auto":
        return "cpu"
    message = f"{gpus} asks for a GPU, and {library} sees none"
    raise bad_setting("hardware.gpus", message, "write 0, or install the extra `gpu`")


def choose_dtype(wanted: str, stored: str, device: str, has_bfloat16: Callable[[], bool]) -> str:
    """Returns the number format of the weights.

    `auto` takes the checkpoint's where the device computes in it: float16 becomes float32 on a CPU,
    and bfloat16 becomes float16 on a GPU that does not have it.

    Args:
        wanted: The configuration's.
        stored: The checkpoint's.
        device: `cpu` or `cuda`.
        has_bfloat16: Whether the GPU computes in bfloat16.
    """
    if wanted != "auto":
        return wanted
    if device == "cpu" and stored == "float16":
        return "float32"
    if device == "cuda" and stored == "bfloat16" and not has_bfloat16():
        return "float16"
    return stored


def find_kernel_faults(
    cfg: Mapping[str, Any], key: str, known: Collection[str], gpu_only: Collection[str], fix: str
) -> list[tuple[str, str, str]]:
    """Returns what is wrong with a choice in `model_optim`, as (dotted path, message, fix).

    Args:
        cfg: The configuration as a nested dict.
        key: `attention` or `quantization`.
        known: What the family knows.
        gpu_only: What of that has kernels for GPUs only.
        fix: What to write where there is no GPU.
    """
    name, place = cfg["model_optim"][key], f"model_optim.{key}"
    if name is not None and name not in known:
        return [(place, f"there is no {key} {name!r}", suggest(name, known))]
    if name in gpu_only and runs_on_cpu(cfg):
        return [(place, f"{name} needs an NVIDIA GPU, and the model runs on CPU", fix)]
    return []


def refused_compiler(error: Exception) -> ConfigError:
    """Returns the error for a machine on which `torch.compile` fails: each fails in its own way."""
    reason = str(error).strip().partition("\n")[0]
    message = f"torch.compile does not work here: {type(error).__name__}: {reason}"
    fix = "install a C++ compiler, or write false"
    return bad_setting("model_optim.compile", message, fix)


def check_quantization(
    name: str, packages: Collection[str], *, needs_gpu: bool, has_gpu: bool, library: str
) -> None:
    """Proves that this machine can run a quantization: its packages import, its GPU is there.

    Raises:
        ConfigError: Something is missing; the message names it.
    """
    place = "model_optim.quantization"
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError, RuntimeError) as error:
            message = f"{name} needs the package {package}, which does not import here: {error}"
            raise bad_setting(place, message, f"pip install {package}") from error
    if needs_gpu and not has_gpu:
        message = f"{name} needs an NVIDIA GPU, and {library} sees none"
        raise bad_setting(place, message, "write torchao-int8, or null")
