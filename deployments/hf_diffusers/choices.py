"""The public names of this family's choices: schedulers, attention, quantization."""

from __future__ import annotations

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "dpm++-single": "DPMSolverSinglestepScheduler",
    "dpm2": "KDPM2DiscreteScheduler",
    "dpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
    "flow-lcm": "FlowMatchLCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short name and diffusers class of every scheduler that a request may name; a request may use
either. Which of them fit depends on the pipeline."""

ATTENTION: dict[str, str] = {
    "sdpa": "native",
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash": "flash",
    "xformers": "xformers",
    "sage": "sage",
}
"""Values of `model_optim.attention` beside `auto`, and diffusers' name of each."""

GPU_ATTENTION = frozenset({"cudnn", "flash", "xformers", "sage"})
"""Those that have kernels for NVIDIA GPUs only."""

QUANTIZATION: dict[str, tuple[str, ...]] = {
    "bitsandbytes-4bit": ("bitsandbytes",),
    "bitsandbytes-8bit": ("bitsandbytes",),
    "torchao-int8": ("torchao",),
    "torchao-int4": ("torchao",),
    "torchao-float8": ("torchao",),
    "gguf": ("gguf",),
}
"""Values of `model_optim.quantization`, and the packages that each needs."""

GPU_QUANTIZATION = frozenset(
    {"bitsandbytes-4bit", "bitsandbytes-8bit", "torchao-int4", "torchao-float8"}
)
"""Those that this product runs on NVIDIA GPUs only."""

SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")
"""Endings of a checkpoint that is one file instead of a folder."""


def scheduler_class(name: str) -> str | None:
    """Returns the diffusers class of a scheduler's short or class name, or None."""
    if name in SCHEDULERS:
        return SCHEDULERS[name]
    return name if name in SCHEDULERS.values() else None
