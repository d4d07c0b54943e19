"""Device, number format and kernels of a model: the rules that families with torch share."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from truthgpt_serve.errors import ConfigError, Fault, bad_setting
from truthgpt_serve.wording import suggest

DTYPES = ("float32", "float16", "bfloat16")
"""Number formats of weights, by torch's names."""
COMPILER_FIX = "install a C++ compiler (apt-get install g++), or write model_optim.compile: false"
"""For a doctor where torch.compile does not work."""


def runs_on_cpu(cfg: Mapping[str, Any]) -> bool:
    """Returns whether a configuration, as a nested dict, asks for no GPU."""
    return bool(cfg["hardware"]["gpus"] == 0 or cfg["hardware"]["device"] == "cpu")


def choose_device(hardware: Mapping[str, Any], torch: Any) -> Any:
    """Returns the `torch.device` of a replica: what `gpus` says, else the GPU if there is one.

    Args:
        hardware: The section of the configuration, as a nested dict.
        torch: The package, which this module must not import.

    Raises:
        ConfigError: A GPU is asked for, and torch sees none.
    """
    gpus, wanted = hardware["gpus"], hardware["device"]
    if gpus == 0 or wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if gpus == "auto" and wanted == "auto":
        return torch.device("cpu")
    message = f"{gpus} asks for a GPU, and torch {torch.__version__} sees none"
    raise bad_setting("hardware.gpus", message, "write 0, or install the extra `gpu`")


def probe_device(cfg: Mapping[str, Any], chosen: list[Any], torch: Any) -> str:
    """Adds a configuration's device to `chosen`, and says it as a doctor does.

    Args:
        cfg: The configuration, as a nested dict.
        chosen: Gets the `torch.device`.
        torch: The package.

    Raises:
        ConfigError: As for `choose_device`.
    """
    chosen.append(choose_device(cfg["hardware"], torch))
    return f"the model would compute on {chosen[0].type}"


def choose_dtype(wanted: str, stored: Any, device: Any, torch: Any) -> Any:
    """Returns the `torch.dtype` of the weights.

    `auto` takes the checkpoint's where the device computes in it: float16 becomes float32 on a CPU,
    and bfloat16 becomes float16 on a GPU that does not have it.

    Args:
        wanted: The configuration's.
        stored: The checkpoint's, by its name or torch's; what is none of DTYPES counts as float32.
        device: Where the model computes.
        torch: The package.
    """
    name = str(stored).removeprefix("torch.")
    if wanted != "auto":
        name = wanted
    elif name not in DTYPES or (device.type == "cpu" and name == "float16"):
        name = "float32"
    elif device.type == "cuda" and name == "bfloat16":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        name = "bfloat16" if has_it else "float16"
    return getattr(torch, name)


def describe_backend(
    device: Any, dtype: Any, attention: str | None, optim: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the backend of a model of torch, for its card.

    Args:
        device: Where its weights are, a `torch.device`.
        dtype: Their number format, a `torch.dtype`.
        attention: The attention that was chosen; None if the choice is the engine's.
        optim: The configuration's section `model_optim`.
    """
    return {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention,
        "quantization": optim["quantization"],
        "compile": optim["compile"],
    }


def find_kernel_faults(
    cfg: Mapping[str, Any], key: str, known: Collection[str], gpu_only: Collection[str], fix: str
) -> list[Fault]:
    """Returns what is wrong with a choice in `model_optim`; their places are dotted paths.

    Args:
        cfg: The configuration as a nested dict.
        key: `attention` or `quantization`.
        known: What the family knows.
        gpu_only: What of that has kernels for GPUs only.
        fix: What to write where there is no GPU.
    """
    name, place = cfg["model_optim"][key], f"model_optim.{key}"
    if name is not None and name not in known:
        return [Fault(place, f"there is no {key} {name!r}", suggest(name, known))]
    if name in gpu_only and runs_on_cpu(cfg):
        return [Fault(place, f"{name} needs an NVIDIA GPU, and the model runs on CPU", fix)]
    return []


def refused_compiler(error: Exception) -> ConfigError:
    """Returns the error for a machine on which `torch.compile` fails: each fails in its own way."""
    reason = str(error).strip().partition("\n")[0]
    message = f"torch.compile does not work here: {type(error).__name__}: {reason}"
    fix = "install a C++ compiler, or write false"
    return bad_setting("model_optim.compile", message, fix)


def check_quantization(
    name: str, packages: Collection[str], gpu_only: Collection[str], torch: Any
) -> None:
    """Proves that this machine can run a quantization: its packages import, its GPU is there.

    Args:
        name: The quantization.
        packages: What it needs.
        gpu_only: All that need a GPU.
        torch: The package.

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
    if name in gpu_only and not torch.cuda.is_available():
        message = f"{name} needs an NVIDIA GPU, and torch {torch.__version__} sees none"
        raise bad_setting(place, message, "write torchao-int8, or null")
