"""Chooses the attention kernel of the denoiser, each proved by a real call before it is taken.

A package's version proves nothing: a kernel may be built for another CUDA, another GPU or another
number format.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from deployments.hf_diffusers.choices import ATTENTION
from truthgpt_serve.errors import ConfigError, Fault

logger = logging.getLogger(__name__)

PLACE = "model_optim.attention"
AUTO_ON_GPU = ("flash", "xformers", "cudnn", "sdpa")
"""What `auto` measures. `sage` computes in 8 bits, which changes images: only its name takes it."""
TOLERANCE = 0.02
SAGE_TOLERANCE = 0.1
"""Largest difference from torch's own attention on values of variance 1."""
MAX_PROBE_TOKENS = 4096
NUM_TIMED_CALLS = 10

XFORMERS_RECIPE = (
    "xformers 0.0.35 is built for CUDA 12.8 and works with torch 2.10.0, not with the torch of the "
    "other extras: on a node with an NVIDIA GPU give the application in the Serve file "
    "runtime_env: {pip: ['torch==2.10.0', 'xformers==0.0.35']}, or write sdpa"
)
RECIPES = {
    "xformers": XFORMERS_RECIPE,
    "flash": "install flash-attn >= 2.6.3 built for this torch, on an NVIDIA GPU of the Ampere "
    "generation or later with bfloat16 or float16, or write sdpa",
    "sage": "install sageattention >= 2.1.1 built for this torch, on an NVIDIA GPU of the Ampere "
    "generation or later with bfloat16 or float16, or write sdpa",
    "cudnn": "it needs an NVIDIA GPU with bfloat16 or float16; write sdpa",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the denoiser's attention is called with.

    Attributes:
        tokens: Latent tokens of an image of the default size, at most `MAX_PROBE_TOKENS`.
        heads: Attention heads.
        head_dim: Values in each head.
        device: Where it computes.
        dtype: Number format.
    """

    tokens: int
    heads: int
    head_dim: int
    device: torch.device
    dtype: torch.dtype


class RefusedError(Exception):
    """A kernel does not work here; the message says what failed."""


def attention_modules(denoiser: Any) -> Iterator[Any]:
    """Yields the attention layers of a denoiser."""
    for module in denoiser.modules():
        if hasattr(module, "processor") and hasattr(module, "heads"):
            yield module


def read_shape(denoiser: Any, num_tokens: int, device: torch.device, dtype: torch.dtype) -> Shape:
    """Returns the shape of the denoiser's first attention layer for an image of `num_tokens`."""
    tokens = max(16, min(num_tokens, MAX_PROBE_TOKENS))
    for module in attention_modules(denoiser):
        heads = int(module.heads)
        width = getattr(getattr(module, "to_q", None), "out_features", None)
        width = width or int(getattr(module, "inner_dim", 64 * heads))
        return Shape(tokens, heads, width // heads, device, dtype)
    return Shape(tokens, 8, 64, device, dtype)


def choose_attention(wanted: str, denoiser: Any, shape: Shape, verify: Callable[[], None]) -> str:
    """Sets the denoiser's attention kernel and returns its name.

    Args:
        wanted: A key of `names.ATTENTION`, or `auto` for the fastest that works.
        denoiser: The module; it is left with the chosen kernel.
        shape: What the kernels are tried and timed with.
        verify: Runs the denoiser itself once; raises when it fails, for example because the kernel
            cannot take the denoiser's mask.

    Raises:
        ConfigError: The one that was asked for does not work; the message says what failed and
            what would.
    """
    if wanted != "auto":
        try:
            probe(wanted, shape)
            _set(wanted, denoiser)
            _run(verify)
        except RefusedError as error:
            _set("sdpa", denoiser)
            raise refusal(wanted, shape, error) from error
        return wanted
    for name in fastest_first(shape):
        try:
            _set(name, denoiser)
            _run(verify)
        except RefusedError as error:
            logger.info("attention %s is left out: %s", name, error)
            continue
        return name
    _set("sdpa", denoiser)
    return "sdpa"


def refusal(name: str, shape: Shape, error: RefusedError) -> ConfigError:
    """Returns the error for a kernel that was asked for and does not work."""
    message = f"{name} does not work with torch {torch.__version__} on {shape.device.type}: {error}"
    return ConfigError([Fault(PLACE, message, RECIPES.get(name, "write auto"))])


def fastest_first(shape: Shape) -> list[str]:
    """Returns the names that work, by their measured time; on a CPU there is only torch's own."""
    if shape.device.type != "cuda":
        return ["sdpa"]
    times: dict[str, float] = {}
    for name in AUTO_ON_GPU:
        try:
            times[name] = probe(name, shape)
        except RefusedError as error:
            logger.info("attention %s is left out: %s", name, error)
    return sorted(times, key=lambda name: times[name])


def probe(name: str, shape: Shape) -> float:
    """Calls a kernel on the model's device, number format and shape; returns seconds for a call.

    Raises:
        RefusedError: It cannot be called, or its result is not attention.
    """
    generator = torch.Generator().manual_seed(0)
    size = (2, shape.tokens, shape.heads, shape.head_dim)
    query, key, value = (
        torch.randn(size, generator=generator).to(shape.device, shape.dtype) for _ in range(3)
    )
    try:
        with torch.no_grad(), attention_backend(ATTENTION[name]):
            found = dispatch_attention_fn(query, key, value)
            seconds = _time(lambda: dispatch_attention_fn(query, key, value), shape.device)
    except Exception as error:  # kernels fail in many ways, some with errors of their own
        raise RefusedError(f"{_packages(name)}{type(error).__name__}: {error}") from error
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (query, key, value))
    ).transpose(1, 2)
    check_result(name, found, expected)
    return seconds


def check_result(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compares a kernel's result with torch's own.

    Raises:
        RefusedError: They differ by more than rounding, or the result has NaN.
    """
    off = (found.float() - expected.float()).abs().max().item()
    if not off <= (SAGE_TOLERANCE if name == "sage" else TOLERANCE):
        raise RefusedError(f"its result differs from torch's by {off:.3g}")


def _packages(name: str) -> str:
    """Returns which package was found, for a message."""
    package = {"flash": "flash-attn", "xformers": "xformers", "sage": "sageattention"}.get(name)
    if package is None:
        return ""
    try:
        return f"{package} {version(package)}: "
    except PackageNotFoundError:
        return f"{package} is not installed: "


def _time(call: Callable[[], Any], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    for _ in range(NUM_TIMED_CALLS):
        call()
    wait()
    return (time.perf_counter() - started) / NUM_TIMED_CALLS


def _run(verify: Callable[[], None]) -> None:
    try:
        verify()
    except Exception as error:  # whatever the denoiser raises with this kernel
        raise RefusedError(
            f"the denoiser fails with it: {type(error).__name__}: {error}"
        ) from error


def _set(name: str, denoiser: Any) -> None:
    """Makes the denoiser's layers use a kernel.

    Newer denoisers have processors that dispatch by name. The UNets' have not: they call torch's
    attention, or xformers' by processors of its own.

    Raises:
        RefusedError: This denoiser has no way to use it.
    """
    if _dispatches(denoiser):
        try:
            denoiser.set_attention_backend(ATTENTION[name])
        except (RuntimeError, ValueError) as error:
            raise RefusedError(str(error)) from error
        return
    if name in ("sdpa", "native"):
        if any("XFormers" in type(m.processor).__name__ for m in attention_modules(denoiser)):
            denoiser.disable_xformers_memory_efficient_attention()
        return
    if name != "xformers":
        kind = type(denoiser).__name__
        raise RefusedError(f"diffusers' {kind} calls torch's attention or xformers, nothing else")
    try:
        denoiser.enable_xformers_memory_efficient_attention()
    except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
        raise RefusedError(str(error)) from error


def _dispatches(denoiser: Any) -> bool:
    """Returns whether the layers choose their kernel by name.

    Diffusers has no public way to ask; the attribute is the one that its setter looks for.
    """
    return any(
        hasattr(module.processor, "_attention_backend") for module in attention_modules(denoiser)
    )
